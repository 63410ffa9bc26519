-- Remembers writes that a sink has got past its journal.
--
-- KEYS  1 values   2 due   3 birth   4 claims   5 attempts   6 taken   7 dead-letter   8 what has overtaken it
--       9 last sequence
-- ARGV  1 how long it is remembered, milliseconds   2 how many are   3.. key and sequence (8 bytes) of each
-- Returns how many records they have overtaken, or are themselves: those are gone, as if they had been written again and
-- taken.
-- See journal_acknowledge.lua. Later sequences are above these, whichever clock those were drawn from.
-- Atomic: all of it. On a full server too: what takes memory is not the first write.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now - ARGV[1] * 1000)
local last = tonumber(redis.call('GET', KEYS[9]) or '0')
local removed = 0
local taken = {}
for i = 3, #ARGV, 2 do
  local key = ARGV[i]
  local sequence = (struct.unpack('>I8', ARGV[i + 1]))
  last = math.max(last, sequence)
  taken[#taken + 1] = sequence
  taken[#taken + 1] = key
  local value = redis.call('HGET', KEYS[1], key)
  if value and string.sub(value, 1, 8) <= ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], key)
    redis.call('ZREM', KEYS[2], key)
    redis.call('ZREM', KEYS[3], key)
    redis.call('HDEL', KEYS[4], key)
    redis.call('HDEL', KEYS[5], key)
    removed = removed + 1
  end
  local buried = redis.call('HGET', KEYS[7], key)
  if buried and string.sub(buried, 1, 8) < ARGV[i + 1] then redis.call('HSET', KEYS[8], key, ARGV[i + 1]) end
end
redis.call('ZADD', KEYS[6], 'GT', unpack(taken))
redis.call('ZREMRANGEBYRANK', KEYS[6], 0, -1 - ARGV[2])
redis.call('PEXPIRE', KEYS[6], ARGV[1])
redis.call('SET', KEYS[9], string.format('%.0f', last))
return removed
