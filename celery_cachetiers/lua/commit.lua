-- Stores what the leader computed, frees the lease and wakes the waiters.
--
-- KEYS  1 entry   2 lease   3 waiters   4.. versions of the tags; where the result gave more, then the invalidation log and
--       the versions of these
-- ARGV  1 token   2 hard TTL, ms   3 least TTL of the versions, ms   4 body of the entry, without its stamp
--       5 prefix of the inboxes   6 digest
--       7 channel and 8 message that tell all processes to drop older copies, '' = none
--       where the result gave tags:
--       9 number of tags without those   10 epoch and 11 count of the log when the lease was taken
--      12 fresh nonces, 8 bytes per tag of the result, for those that have no version   13.. their names
-- Returns  1 stored
--          0 the token does not hold the lease: lost, fenced, or an earlier send of this commit has arrived
--         -1 a tag was invalidated after the lease was taken, or the log of invalidations is another one since: not
--            stored, lease freed
--         -2 the server would not store it (full): not stored, lease freed
-- Atomic: comparing lease and stamp, storing, freeing. SET and PUBLISH run under pcall, because a script is not rolled
-- back: neither a full server nor a missing channel permission may leave the lease behind.

local lease = redis.call('GET', KEYS[2])
if not lease then return 0 end
local length = struct.unpack('<H', lease, 2)
if string.sub(lease, 4, 3 + length) ~= ARGV[1] then return 0 end

local stamp = string.sub(lease, 4 + length)
local tags = ARGV[9] and tonumber(ARGV[9]) or #KEYS - 3
local outcome = 1
local nonces = tags > 0 and redis.call('MGET', unpack(KEYS, 4, 3 + tags)) or {}
for i = 1, tags do
  if nonces[i] ~= string.sub(stamp, 8 * i - 7, 8 * i) then outcome = -1 end
end

-- The result's tags had no place in the stamp, as nobody knew them before the compute: the log tells of each whether it
-- was invalidated since.
if ARGV[9] then
  local noted = redis.call('HMGET', KEYS[4 + tags], '@epoch', unpack(ARGV, 13))
  if noted[1] ~= ARGV[10] then outcome = -1 end
  for i = 2, #noted do
    if noted[i] and tonumber(noted[i]) > tonumber(ARGV[11]) then outcome = -1 end
  end
end
if outcome == 1 and ARGV[9] then
  local more = redis.call('MGET', unpack(KEYS, 5 + tags))
  for i = 1, #more do
    if not more[i] then
      more[i] = string.sub(ARGV[12], 8 * i - 7, 8 * i)
      if redis.pcall('SET', KEYS[4 + tags + i], more[i], 'PX', math.floor(1.1 * ARGV[3])).err then outcome = -2 end
    end
  end
  stamp = stamp .. table.concat(more)
end
if outcome == 1 then
  local answer = redis.pcall('SET', KEYS[1], ARGV[4] .. stamp, 'PX', ARGV[2])
  if answer.err then
    outcome = -2
    redis.pcall('UNLINK', KEYS[1])
  else
    for i = 4, #KEYS do
      if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[3]) then
        redis.call('PEXPIRE', KEYS[i], math.floor(1.1 * ARGV[3]))
      end
    end
  end
end

redis.call('DEL', KEYS[2])
for _, inbox in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  redis.pcall('PUBLISH', ARGV[5] .. inbox, ARGV[6])
end
redis.call('DEL', KEYS[3])
if outcome == 1 and ARGV[7] ~= '' then redis.pcall('PUBLISH', ARGV[7], ARGV[8]) end
return outcome
