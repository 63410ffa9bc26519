-- Claims records for a flusher, the first due first.
--
-- KEYS  1 values   2 due   3 claims   4 attempts, see journal_give_back.lua   5 taken, see journal_acknowledge.lua
-- ARGV  1 token of the flusher   2 records at most   3 how long, microseconds   4 the only key to claim, or ''
-- Returns of each, in one flat list: key, value, attempts, microseconds since it first failed alone, and 1 if the sink has
-- taken something since it last has that was written later.
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
local newest = tonumber(redis.call('ZREVRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2] or '0')
local found = {}
for _, key in ipairs(keys) do
  local value = redis.call('HGET', KEYS[1], key)
  if value then
    redis.call('HDEL', KEYS[3], key)
    redis.call('HSET', KEYS[3], key, ARGV[1])
    redis.call('ZADD', KEYS[2], now + ARGV[3] + #found / 5, key)
    found[#found + 1] = key
    found[#found + 1] = value
    local attempts, first, last = string.match(redis.call('HGET', KEYS[4], key) or '', '^(%d+):(%d+):(%d+)$')
    found[#found + 1] = tonumber(attempts or '0')
    found[#found + 1] = now - (first or now)
    found[#found + 1] = last and newest > tonumber(last) and 1 or 0
  else
    redis.call('ZREM', KEYS[2], key)
  end
end
return found
