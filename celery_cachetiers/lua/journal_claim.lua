-- Claims records for a flusher, the first due first.
--
-- KEYS  1 values   2 due   3 claims   4 attempts
-- ARGV  1 token of the flusher   2 records at most   3 how long, microseconds   4 the only key to claim, or ''
-- Returns key, value and attempts of each, in one flat list.
-- claims: key -> token. A claim holds until its record is due again; the next flusher then takes it over. A key that is
-- asked for by name need not be due, but must not be claimed.
-- Atomic: choosing and claiming, so that a key is in one flusher's hands at a time.
-- A full server is emptied by this: what takes memory is not the first write, which is all that it refuses.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local keys
if ARGV[4] == '' then
  keys = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2])
else
  local due = redis.call('ZSCORE', KEYS[2], ARGV[4])
  local claimed = due and tonumber(due) > now and redis.call('HEXISTS', KEYS[3], ARGV[4]) == 1
  keys = due and not claimed and {ARGV[4]} or {}
end
local found = {}
for _, key in ipairs(keys) do
  local value = redis.call('HGET', KEYS[1], key)
  if value then
    redis.call('HDEL', KEYS[3], key)
    redis.call('HSET', KEYS[3], key, ARGV[1])
    redis.call('ZADD', KEYS[2], now + ARGV[3] + #found / 3, key)
    found[#found + 1] = key
    found[#found + 1] = value
    found[#found + 1] = redis.call('HGET', KEYS[4], key) or '0'
  else
    redis.call('ZREM', KEYS[2], key)
  end
end
return found
