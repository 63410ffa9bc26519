-- Removes records that a sink has taken.
--
-- KEYS  1 values   2 due   3 birth   4 claims   5 attempts
-- ARGV  1 token   2.. key and sequence (8 bytes) of each
-- Returns how many were removed.
-- A record that was written again meanwhile stays and is due at once: now it may be claimed anew, and no write of it is
-- older than the one that was taken. One whose claim has passed to another flusher is that flusher's.
-- Atomic: comparing the sequence and removing, so that a write that comes in between is never lost.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local removed = 0
for i = 2, #ARGV, 2 do
  local key = ARGV[i]
  if redis.call('HGET', KEYS[4], key) == ARGV[1] then
    redis.call('HDEL', KEYS[4], key)
    local value = redis.call('HGET', KEYS[1], key)
    if value and string.sub(value, 1, 8) == ARGV[i + 1] then
      redis.call('HDEL', KEYS[1], key)
      redis.call('ZREM', KEYS[2], key)
      redis.call('ZREM', KEYS[3], key)
      redis.call('HDEL', KEYS[5], key)
      removed = removed + 1
    elseif value then
      redis.call('ZADD', KEYS[2], now, key)
      redis.call('ZADD', KEYS[3], 'XX', math.min(now, (struct.unpack('>I8', ARGV[i + 1]))), key)
    end
  end
end
return removed
