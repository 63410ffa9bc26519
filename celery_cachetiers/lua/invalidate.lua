-- Forgets the versions of tags, so that everything under them is a miss, and notes that for those who compute now.
--
-- KEYS  1 invalidation log   2.. versions of the tags
-- ARGV  1 tags that the log may hold at most   2.. names of the tags
-- Returns 1.
-- The log is a hash: @epoch (random), @count (invalidations so far), tag -> @count at its last one. It is there only
-- while somebody needs it, see lease.lua. One that is too long, or that a full server will not take, is given up: its
-- epoch is gone, so that whoever computes under it is refused.
-- Atomic: forgetting and noting; a commit sees both or none.

redis.call('UNLINK', unpack(KEYS, 2))
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
local count = redis.pcall('HINCRBY', KEYS[1], '@count', 1)
local noted = type(count) == 'number'
if noted then
  local fields = {}
  for i = 2, #ARGV do
    fields[#fields + 1] = ARGV[i]
    fields[#fields + 1] = count
  end
  local answer = redis.pcall('HSET', KEYS[1], unpack(fields))
  noted = type(answer) == 'number' and redis.call('HLEN', KEYS[1]) <= tonumber(ARGV[1]) + 2
end
if not noted then redis.call('UNLINK', KEYS[1]) end
return 1
