-- Prolongs a lease, its waiters and the versions it was taken under.
--
-- KEYS  1 lease   2 waiters   3.. versions of the tags; for a task whose results give tags also the invalidation log
-- ARGV  1 token   2 lease TTL, ms   3 least TTL of the versions, ms
-- Returns 1 prolonged, 0 the token does not hold it.
-- Atomic: compare and prolong.

local lease = redis.call('GET', KEYS[1])
if not lease then return 0 end
local length = struct.unpack('<H', lease, 2)
if string.sub(lease, 4, 3 + length) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], 2 * tonumber(ARGV[2]))
for i = 3, #KEYS do
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[i], math.floor(1.1 * ARGV[3])) end
end
return 1
