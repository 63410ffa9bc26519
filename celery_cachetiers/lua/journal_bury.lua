-- Moves a record to the dead-letter.
--
-- KEYS  1 values   2 due   3 birth   4 claims   5 attempts   6 dead-letter   7 its order
-- ARGV  1 token   2 key   3 sequence (8 bytes)   4 head of the dead record
-- Returns 1 moved, 0 not: it was written again meanwhile (then it is due at once), or the claim is another's.
-- dead-letter: key -> sequence, length of the head (u32, big-endian), head, body. It keeps the value of a key that has
-- the highest sequence; the other one is overtaken.
-- Atomic: all of it. On a full server too: what takes memory is not the first write.

local key = ARGV[2]
if redis.call('HGET', KEYS[4], key) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local value = redis.call('HGET', KEYS[1], key)
redis.call('HDEL', KEYS[4], key)
if not value or string.sub(value, 1, 8) ~= ARGV[3] then
  redis.call('ZADD', KEYS[2], 'XX', now, key)
  return 0
end
local dead = redis.call('HGET', KEYS[6], key)
if not dead or string.sub(dead, 1, 8) <= ARGV[3] then
  redis.call('HSET', KEYS[6], key, ARGV[3] .. struct.pack('>I4', #ARGV[4]) .. ARGV[4] .. string.sub(value, 9))
  redis.call('ZADD', KEYS[7], now, key)
end
redis.call('HDEL', KEYS[1], key)
redis.call('ZREM', KEYS[2], key)
redis.call('ZREM', KEYS[3], key)
redis.call('HDEL', KEYS[5], key)
return 1
