-- Replaces an entry from outside and fences a leader that computes from an older state.
--
-- KEYS  1 entry   2 lease   3 waiters   4 what leaders left   5.. versions of the tags
-- ARGV  1 hard TTL, ms   2 least TTL of the versions, ms   3 fresh nonces, 8 bytes per tag
--       4 body of the entry without its stamp; '' = remove the entry
--       5 prefix of the inboxes   6 digest   7 channel and 8 message that tell all processes to drop older copies
-- Returns 1 done, -2 the server would not store it (the old entry is gone all the same).
-- Atomic: removing the lease and what was left, replacing the entry, waking. PUBLISH is not under pcall where it is the
-- announcement: an announcement that nobody may send must be heard of.

local outcome = 1
if ARGV[4] ~= '' then
  local tags = #KEYS - 4
  local nonces = tags > 0 and redis.call('MGET', unpack(KEYS, 5)) or {}
  for i = 1, tags do
    if not nonces[i] then
      nonces[i] = string.sub(ARGV[3], 8 * i - 7, 8 * i)
      if redis.pcall('SET', KEYS[4 + i], nonces[i], 'PX', math.floor(1.1 * ARGV[2])).err then outcome = -2 end
    end
  end
  -- Before anything is deleted or prolonged: a full server no longer refuses a script that has written.
  if redis.pcall('SET', KEYS[1], ARGV[4] .. table.concat(nonces), 'PX', ARGV[1]).err then outcome = -2 end
  for i = 1, tags do
    if redis.call('PTTL', KEYS[4 + i]) < tonumber(ARGV[2]) then
      redis.call('PEXPIRE', KEYS[4 + i], math.floor(1.1 * ARGV[2]))
    end
  end
end
if ARGV[4] == '' or outcome ~= 1 then redis.call('UNLINK', KEYS[1]) end
redis.call('DEL', KEYS[2], KEYS[4])
for _, inbox in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  redis.pcall('PUBLISH', ARGV[5] .. inbox, ARGV[6])
end
redis.call('DEL', KEYS[3])
redis.call('PUBLISH', ARGV[7], ARGV[8])
return outcome
