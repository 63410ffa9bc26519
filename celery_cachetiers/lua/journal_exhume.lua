-- Moves records from the dead-letter back among those that are due.
--
-- KEYS  1 values   2 due   3 birth   4 attempts   5 dead-letter   6 its order   7 what has overtaken it   8 taken
-- ARGV  keys
-- Returns how many were moved, and how many were overtaken: their keys have a newer value in the journal, or the sink
-- has taken one since. Those are dropped.
-- They keep their sequences.
-- Atomic: all of it. On a full server too: what takes memory is not the first write.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local moved, overtaken = 0, 0
for _, key in ipairs(ARGV) do
  local dead = redis.call('HGET', KEYS[5], key)
  if dead then
    redis.call('HDEL', KEYS[5], key)
    redis.call('ZREM', KEYS[6], key)
    local sequence = string.sub(dead, 1, 8)
    local value, since = redis.call('HGET', KEYS[1], key), redis.call('HGET', KEYS[7], key)
    local taken = tonumber(redis.call('ZSCORE', KEYS[8], key) or '0')
    redis.call('HDEL', KEYS[7], key)
    if (value and string.sub(value, 1, 8) >= sequence) or (since and since > sequence)
        or taken > struct.unpack('>I8', sequence) then
      overtaken = overtaken + 1
    else
      local head = struct.unpack('>I4', dead, 9)
      redis.call('HSET', KEYS[1], key, sequence .. string.sub(dead, 13 + head))
      redis.call('HDEL', KEYS[4], key)
      redis.call('ZADD', KEYS[2], 'NX', now + moved, key)
      redis.call('ZADD', KEYS[3], 'NX', now + moved, key)
      moved = moved + 1
    end
  end
end
return {moved, overtaken}
