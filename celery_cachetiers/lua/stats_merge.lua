-- Adds what one process has counted since its last merge, once.
--
-- KEYS  1 last merge of the process   2 names of the tasks   3 hot keys   4 filter of the keys that have missed
--       5 the filter before   6 number of keys in 4   7.. hashes of counters
-- ARGV  1 number of the merge   2 how long it is remembered, ms   3 how long counters live without a merge, ms
--       4 fields that a hash may have at most   5 field that stands for all others
--       6 how long hot keys live, ms   7 when half of their calls are forgotten, ms   8 how many there are at most
--       9 age of a filter that gives way to a new one, ms   10 number of keys in a filter that does
--       11 how many hot keys follow, and so many pairs of key and calls, then
--       for each hash: name of its task ('' = it is no task's), number of fields, and so many pairs of field and change,
--       number of bits, and so many of the filter's, two for each key of the task that has missed
-- Returns  1 added
--          0 it was added before: the answer was lost
-- A change with a point or an exponent is of seconds, else it is of a count.
-- names: a sorted set, task -> time of its last merge, ms. Those whose counters have expired leave it here.
-- hot keys: a sorted set, task and key -> calls, each merge's worth half after a while. How long ago the last merge was
-- is what is missing of the set's time to live.
-- A filter lives for twice ARGV 9: while it is filled, and then while the next one is.
-- Atomic: remembering and adding. To remember is the first write, which is all that a full server refuses: then nothing
-- was added. What is no counter (a foreign key or field) starts over or is left alone, and hinders no other.

if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.pcall('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])

local at = 12
local pairs_end = at + 2 * ARGV[11]
if ARGV[11] ~= '0' then
  local kept, left = tonumber(ARGV[6]), redis.pcall('PTTL', KEYS[3])
  if left > 0 and left < kept then
    local weight = string.format('%.17g', 2 ^ ((left - kept) / ARGV[7]))
    redis.pcall('ZUNIONSTORE', KEYS[3], 1, KEYS[3], 'WEIGHTS', weight)
  end
  while at < pairs_end do
    redis.pcall('ZINCRBY', KEYS[3], ARGV[at + 1], ARGV[at])
    at = at + 2
  end
  redis.pcall('ZREMRANGEBYRANK', KEYS[3], 0, -1 - ARGV[8])
  redis.call('PEXPIRE', KEYS[3], kept)
end

local most, others = tonumber(ARGV[4]), ARGV[5]
local function add(key, field, change)
  local size = redis.pcall('HLEN', key)
  if type(size) == 'number' and size >= most and redis.call('HEXISTS', key, field) == 0 then field = others end
  local command = string.find(change, '[.e]') and 'HINCRBYFLOAT' or 'HINCRBY'
  local answer = redis.pcall(command, key, field, change)
  if type(answer) == 'table' and answer.err then redis.pcall('HSET', key, field, change) end
end

-- Old values of some bits of a filter, all zero if it is none. BITFIELD, as a command for each bit takes ten times as long.
local function bits_of(key, verb, from, to, value)
  local fields = {}
  for i = from, to do
    fields[#fields + 1], fields[#fields + 2], fields[#fields + 3], fields[#fields + 4] = verb, 'u1', ARGV[i], value
  end
  return redis.pcall('BITFIELD', key, unpack(fields))
end

-- How many keys, of those whose pairs of bits stand in ARGV from here to there, were in neither filter. All are in the
-- newer one afterwards. 1,000 places at most, as Lua unpacks no more than 8,000 values.
local function first_times(from, to)
  local here, before = bits_of(KEYS[4], 'SET', from, to, 1), bits_of(KEYS[5], 'GET', from, to)
  local first, new = 0, 0
  for i = 1, to - from + 1, 2 do
    if not (here[i] == 1 and here[i + 1] == 1) then
      new = new + 1
      if not (before[i] == 1 and before[i + 1] == 1) then first = first + 1 end
    end
  end
  redis.pcall('INCRBY', KEYS[6], new)
  return first
end

local function new_filter_if_due()
  local left = redis.call('PTTL', KEYS[4])
  local keys = tonumber(redis.pcall('GET', KEYS[6])) or 0
  if left == -2 or (left > tonumber(ARGV[9]) and keys < tonumber(ARGV[10])) then return end
  redis.call('RENAME', KEYS[4], KEYS[5])
  redis.call('DEL', KEYS[6])
end

local looked = false
for i = 7, #KEYS do
  local key, task, fields = KEYS[i], ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, fields do
    add(key, ARGV[at], ARGV[at + 1])
    at = at + 2
  end
  local bits = tonumber(ARGV[at])
  at = at + 1
  if bits > 0 then
    if not looked then new_filter_if_due() end
    looked = true
    local first = 0
    for from = at, at + bits - 1, 1000 do first = first + first_times(from, math.min(from + 999, at + bits - 1)) end
    at = at + bits
    if first > 0 then add(key, 'first_misses', tostring(first)) end
    if first < bits / 2 then add(key, 'repeated_misses', tostring(bits / 2 - first)) end
  end
  redis.call('PEXPIRE', key, ARGV[3])
  if task ~= '' then redis.pcall('ZADD', KEYS[2], now, task) end
end
if looked and redis.call('PTTL', KEYS[4]) == -1 then redis.call('PEXPIRE', KEYS[4], 2 * ARGV[9]) end
if looked then redis.call('PEXPIRE', KEYS[6], 2 * ARGV[9]) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
