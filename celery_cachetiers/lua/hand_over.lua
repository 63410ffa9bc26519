-- Keeps a lease for the task id under which its holder will try again. Waiters go on waiting.
--
-- KEYS  1 lease   2 waiters
-- ARGV  1 token   2 task id   3 TTL, ms
-- Returns 1 handed over, 0 the token does not hold it.
-- Atomic: compare and replace; the stamp stays.

local lease = redis.call('GET', KEYS[1])
if not lease then return 0 end
local length = struct.unpack('<H', lease, 2)
if string.sub(lease, 4, 3 + length) ~= ARGV[1] then return 0 end
local stamp = string.sub(lease, 4 + length)
redis.call('SET', KEYS[1], 'h' .. struct.pack('<H', #ARGV[2]) .. ARGV[2] .. stamp, 'PX', ARGV[3])
redis.call('PEXPIRE', KEYS[2], 2 * tonumber(ARGV[3]))
return 1
