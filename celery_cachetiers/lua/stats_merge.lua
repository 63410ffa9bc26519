-- Adds what one process has counted since its last merge, once.
--
-- KEYS  1 last merge of the process   2 names of the tasks   3 hot keys   4 filter of the keys that have missed
--       5 the filter before   6 number of keys in 4   7.. hashes of counters
-- ARGV  1 number of the merge   2 how long it is remembered, ms   3 how long counters live without a merge, ms
--       4 fields that a hash may have at most   5 field that stands for all others
--       6 how long hot keys live, ms   7 when half of their calls are forgotten, ms   8 how many there are at most
--       9 age of a filter that gives way to a new one, ms   10 number of keys in a filter that does
--       11 the bit of a filter from which its halvings stand   12 halvings of this merge: what keys of lower rank are missing
--       13 how many hot keys follow, and so many pairs of key and calls, then
--       for each hash: name of its task ('' = it is no task's), number of fields, and so many pairs of field and change,
--       number of keys of the task that have missed, and for each: its two bits of the filter, its rank, how often
-- Returns  1 added
--          0 it was added before: the answer was lost
-- A change with a point or an exponent is of seconds, else it is of a count.
-- names: a sorted set, task -> time of its last merge, ms. Those whose counters have expired leave it here.
-- hot keys: a sorted set, task and key -> calls, each merge's worth half after a while. How long ago the last merge was
-- is what is missing of the set's time to live.
-- Keys of a rank below the halvings of a merge, or of a filter, may have missed unseen: they are not told apart. The others
-- stand for all misses of their task in this merge.
-- A filter lives for twice ARGV 9: while it is filled, and then while the next one is.
-- Atomic: remembering and adding. To remember is the first write, which is all that a full server refuses: then nothing
-- was added. What is no counter (a foreign key or field) starts over or is left alone, and hinders no other.

if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.pcall('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])

local at = 14
local pairs_end = at + 2 * ARGV[13]
if ARGV[13] ~= '0' then
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
  for i = from, to, 4 do
    for bit = i, i + 1 do
      fields[#fields + 1], fields[#fields + 2], fields[#fields + 3], fields[#fields + 4] = verb, 'u1', ARGV[bit], value
    end
  end
  return redis.pcall('BITFIELD', key, unpack(fields))
end

local function halvings_of(key)
  local found = redis.pcall('BITFIELD', key, 'GET', 'u8', ARGV[11])
  return tonumber(found[1]) or 0
end

-- The rank from which every key that has missed is in the filters, or in this merge.
local function least_rank()
  local here, merged = halvings_of(KEYS[4]), tonumber(ARGV[12])
  if merged > here then redis.pcall('BITFIELD', KEYS[4], 'SET', 'u8', ARGV[11], merged) end
  return math.max(here, merged, halvings_of(KEYS[5]))
end

-- Of the keys that stand in ARGV from here to there and are of that rank: how many were in neither filter, and how many
-- misses all have. All keys are in the newer filter afterwards. 2,000 places at most, as Lua unpacks no more than 8,000.
local function told_apart(from, to, least)
  local here, before = bits_of(KEYS[4], 'SET', from, to, 1), bits_of(KEYS[5], 'GET', from, to)
  local first, known, new, i = 0, 0, 0, 1
  for place = from, to, 4 do
    local is_new = not (here[i] == 1 and here[i + 1] == 1)
    if is_new then new = new + 1 end
    if tonumber(ARGV[place + 2]) >= least then
      known = known + ARGV[place + 3]
      if is_new and not (before[i] == 1 and before[i + 1] == 1) then first = first + 1 end
    end
    i = i + 2
  end
  redis.pcall('INCRBY', KEYS[6], new)
  return first, known
end

local function new_filter_if_due()
  local left = redis.call('PTTL', KEYS[4])
  local keys = tonumber(redis.pcall('GET', KEYS[6])) or 0
  if left == -2 or (left > tonumber(ARGV[9]) and keys < tonumber(ARGV[10])) then return end
  redis.call('RENAME', KEYS[4], KEYS[5])
  redis.call('DEL', KEYS[6])
end

local least
for i = 7, #KEYS do
  local key, task, fields = KEYS[i], ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  local misses = 0
  for _ = 1, fields do
    add(key, ARGV[at], ARGV[at + 1])
    if ARGV[at] == 'misses' then misses = tonumber(ARGV[at + 1]) end
    at = at + 2
  end
  local last = at + 4 * ARGV[at]
  at = at + 1
  if last >= at then
    if not least then
      new_filter_if_due()
      least = least_rank()
    end
    local first, known = 0, 0
    for from = at, last, 2000 do
      local more_first, more_known = told_apart(from, math.min(from + 1999, last), least)
      first, known = first + more_first, known + more_known
    end
    at = last + 1
    if known > 0 then
      first = math.floor(misses * first / known + 0.5)
      if first > 0 then add(key, 'first_misses', string.format('%d', first)) end
      if first < misses then add(key, 'repeated_misses', string.format('%d', misses - first)) end
    end
  end
  redis.call('PEXPIRE', key, ARGV[3])
  if task ~= '' then redis.pcall('ZADD', KEYS[2], now, task) end
end
if least and redis.call('PTTL', KEYS[4]) == -1 then redis.call('PEXPIRE', KEYS[4], 2 * ARGV[9]) end
if least then redis.call('PEXPIRE', KEYS[6], 2 * ARGV[9]) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
