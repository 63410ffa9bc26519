-- Whether records are still the last ones of their keys.
--
-- KEYS  1 values
-- ARGV  key and sequence (8 bytes) of each
-- Returns 1 or 0 for each: 0 if it was written again, or if a sink has taken it.

local stands = {}
for i = 1, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  stands[#stands + 1] = value and string.sub(value, 1, 8) == ARGV[i + 1] and 1 or 0
end
return stands
