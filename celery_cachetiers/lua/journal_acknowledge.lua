-- Removes records that a sink has taken, and remembers which it has taken last.
--
-- KEYS  1 values   2 due   3 birth   4 claims   5 attempts   6 taken   7 dead-letter   8 what has overtaken it
-- ARGV  1 token   2 how long it is remembered, milliseconds   3 how many are   4.. key and sequence (8 bytes) of each
-- Returns how many were removed.
-- A record that was written again meanwhile stays and is due at once: now it may be claimed anew, and no write of it is
-- older than the one that was taken. One whose claim has passed to another flusher is that flusher's.
-- taken: key -> the highest sequence that the sink has. A body that has begun before it gives an older value, see
-- journal_write.lua. One that runs for longer than this is remembered is not known to be older, hence the order by
-- sequence: it tells when the write was made. overtaken: the same for keys of the dead-letter, as long as they are there.
-- Atomic: comparing the sequence and removing, so that a write that comes in between is never lost.
-- On a full server too: what takes memory is not the first write.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now - ARGV[2] * 1000)
local dead = redis.call('EXISTS', KEYS[7]) == 1
local removed = 0
local taken = {}
for i = 4, #ARGV, 2 do
  local key = ARGV[i]
  local sequence = (struct.unpack('>I8', ARGV[i + 1]))
  taken[#taken + 1] = sequence
  taken[#taken + 1] = key
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
      redis.call('ZADD', KEYS[3], 'XX', math.min(now, sequence), key)
    end
  end
  local buried = dead and redis.call('HGET', KEYS[7], key)
  if buried and string.sub(buried, 1, 8) < ARGV[i + 1] then redis.call('HSET', KEYS[8], key, ARGV[i + 1]) end
end
if #taken > 0 then
  redis.call('ZADD', KEYS[6], 'GT', unpack(taken))
  redis.call('ZREMRANGEBYRANK', KEYS[6], 0, -1 - ARGV[3])
  redis.call('PEXPIRE', KEYS[6], ARGV[2])
end
return removed
