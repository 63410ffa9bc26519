-- Frees a lease without storing, and wakes the waiters: one of them leads next.
--
-- KEYS  1 lease   2 waiters
-- ARGV  1 token   2 prefix of the inboxes   3 digest
-- Returns 1 freed, 0 the token does not hold it.
-- Atomic: compare, free, wake.

local lease = redis.call('GET', KEYS[1])
if not lease then return 0 end
local length = struct.unpack('<H', lease, 2)
if string.sub(lease, 4, 3 + length) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
for _, inbox in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  redis.pcall('PUBLISH', ARGV[2] .. inbox, ARGV[3])
end
redis.call('DEL', KEYS[2])
return 1
