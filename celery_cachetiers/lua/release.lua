-- Frees a lease without storing an entry, and wakes the waiters: one of them leads next, unless something was left to all.
--
-- KEYS  1 lease   2 waiters   3 what leaders left
-- ARGV  1 token   2 prefix of the inboxes   3 digest
--       4 'v' value, 'e' error, '' = nothing is left   5 its body   6 its TTL, ms
--       7 epoch and count of the invalidation log when the lease was taken, for a task whose results give tags, else ''
-- Returns 1 freed, 0 the token does not hold it.
-- What is left: kind (1 byte), length of the token (u16), token, length of the stamp (u16), stamp of the lease with
-- ARGV 7, body.
-- Atomic: compare, leave, free, wake. SET runs under pcall: a full server must not keep the lease from being freed.

local lease = redis.call('GET', KEYS[1])
if not lease then return 0 end
local length = struct.unpack('<H', lease, 2)
if string.sub(lease, 4, 3 + length) ~= ARGV[1] then return 0 end
if ARGV[4] ~= '' then
  local stamp = string.sub(lease, 4 + length) .. ARGV[7]
  local head = ARGV[4] .. struct.pack('<H', #ARGV[1]) .. ARGV[1] .. struct.pack('<H', #stamp) .. stamp
  redis.pcall('SET', KEYS[3], head .. ARGV[5], 'PX', ARGV[6])
end
redis.call('DEL', KEYS[1])
for _, inbox in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  redis.pcall('PUBLISH', ARGV[2] .. inbox, ARGV[3])
end
redis.call('DEL', KEYS[2])
return 1
