-- Ends claims on records that a sink has not taken.
--
-- KEYS  1 values   2 due   3 claims   4 attempts
-- ARGV  1 token   2 due in, microseconds   3 '1' counts an attempt for each, '2' notes that each has failed alone, or ''
--       4.. key and sequence of each
-- Returns how many were given back.
-- attempts: key -> attempts ':' when it first failed alone ':' when it last has.
-- A record that was written again meanwhile is another one: it is due at once, and has no attempts.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local given = 0
for i = 4, #ARGV, 2 do
  local key = ARGV[i]
  if redis.call('HGET', KEYS[3], key) == ARGV[1] then
    redis.call('HDEL', KEYS[3], key)
    local value = redis.call('HGET', KEYS[1], key)
    if value and string.sub(value, 1, 8) == ARGV[i + 1] then
      redis.call('ZADD', KEYS[2], 'XX', now + ARGV[2] + (i - 4) / 2, key)
      if ARGV[3] ~= '' then
        local attempts, first = string.match(redis.call('HGET', KEYS[4], key) or '0:', '^(%d+):(%d*)')
        attempts = attempts + (ARGV[3] == '1' and 1 or 0)
        first = first == '' and now or first
        redis.call('HSET', KEYS[4], key, string.format('%d:%.0f:%.0f', attempts, first, now))
      end
    else
      redis.call('ZADD', KEYS[2], 'XX', now, key)
    end
    given = given + 1
  end
end
return given
