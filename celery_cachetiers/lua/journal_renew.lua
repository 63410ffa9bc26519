-- Prolongs a flusher's claims.
--
-- KEYS  1 due   2 claims
-- ARGV  1 token   2 how long from now, microseconds   3.. keys
-- Returns how many of them are still the token's.
-- On a full server too: what takes memory is not the first write.

local time = redis.call('TIME')
local until_us = time[1] * 1000000 + time[2] + ARGV[2]
local kept = 0
for i = 3, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[1] then
    redis.call('ZREM', KEYS[1], ARGV[i])
    redis.call('ZADD', KEYS[1], until_us + i - 3, ARGV[i])
    kept = kept + 1
  end
end
return kept
