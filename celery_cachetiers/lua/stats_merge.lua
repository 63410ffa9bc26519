-- Adds what one process has counted since its last merge, once.
--
-- KEYS  1 last merge of the process   2 names of the tasks   3.. hashes of counters
-- ARGV  1 number of the merge   2 how long it is remembered, ms   3 how long counters live without a merge, ms
--       4 fields that a hash may have at most   5 field that stands for all others, then
--       for each hash: name of its task ('' = it is no task's), number of fields, and so many pairs of field and change
-- Returns  1 added
--          0 it was added before: the answer was lost
-- A change with a point or an exponent is of seconds, else it is of a count.
-- names: a sorted set, task -> time of its last merge, ms. Those whose counters have expired leave it here.
-- Atomic: remembering and adding. To remember is the first write, which is all that a full server refuses: then nothing
-- was added. What is no counter (a foreign key or field) starts over or is left alone, and hinders no other.

if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.pcall('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])

local most, others = tonumber(ARGV[4]), ARGV[5]
local at = 6
for i = 3, #KEYS do
  local key, task, fields = KEYS[i], ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, fields do
    local field, change = ARGV[at], ARGV[at + 1]
    at = at + 2
    local size = redis.pcall('HLEN', key)
    if type(size) == 'number' and size >= most and redis.call('HEXISTS', key, field) == 0 then field = others end
    local command = string.find(change, '[.e]') and 'HINCRBYFLOAT' or 'HINCRBY'
    local answer = redis.pcall(command, key, field, change)
    if type(answer) == 'table' and answer.err then redis.pcall('HSET', key, field, change) end
  end
  redis.call('PEXPIRE', key, ARGV[3])
  if task ~= '' then redis.pcall('ZADD', KEYS[2], now, task) end
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
