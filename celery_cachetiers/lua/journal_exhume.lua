-- Moves records from the dead-letter back among those that are due.
--
-- KEYS  1 values   2 due   3 birth   4 attempts   5 dead-letter   6 its order
-- ARGV  keys
-- Returns how many there were.
-- They keep their sequences. One whose key has a newer value in the journal is dropped: it was overtaken.
-- Atomic: all of it. On a full server too: what takes memory is not the first write.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local moved = 0
for _, key in ipairs(ARGV) do
  local dead = redis.call('HGET', KEYS[5], key)
  if dead then
    redis.call('HDEL', KEYS[5], key)
    redis.call('ZREM', KEYS[6], key)
    local value = redis.call('HGET', KEYS[1], key)
    if not value or string.sub(value, 1, 8) < string.sub(dead, 1, 8) then
      local head = struct.unpack('>I4', dead, 9)
      redis.call('HSET', KEYS[1], key, string.sub(dead, 1, 8) .. string.sub(dead, 13 + head))
      redis.call('HDEL', KEYS[4], key)
      redis.call('ZADD', KEYS[2], 'NX', now + moved, key)
      redis.call('ZADD', KEYS[3], 'NX', now + moved, key)
    end
    moved = moved + 1
  end
end
return moved
