-- Looks again for an entry, then takes the lease or registers the caller to be woken.
--
-- KEYS  1 entry   2 lease   3 waiters   4 what leaders left   5.. versions of the tags, in the stamp's order; for a task
--       whose results give tags then the invalidation log, and the versions of those that an entry is thought to have
-- ARGV  1 token of this attempt
--       2 lease TTL, ms
--       3 least TTL of the versions, ms (each script gives a tenth more, so that most write none)
--       4 fresh nonces, 8 bytes per tag, for the tags that have no version
--       5 tag block that a valid entry names, tags of its result included
--       6 now, epoch seconds; '' = do not look for an entry
--       7 sha1 (hex) of an entry that the caller found unusable, or ''
--       8 task id to which the lease may have been handed, or ''
--       9 token of the holder to replace, '*' = any, or ''
--      10 inbox of the caller, '' = it will not wait
--      11 state of the lease taken: 'c' computing, 'h' handed to the task id in ARGV 1; 'w' = watch, take none
--      12 token of the leader that the caller has waited for, or ''
--      for a task whose results give tags:
--      13 number of tags without those   14 fresh epoch for the log   15 tag block without those
-- Returns {1, entry}                          a fresh entry
--         {2, stamp, stale entry or '', outdated, epoch, count}
--                                             the caller leads, under this stamp; with 13, where the log stands.
--                                             outdated: position of the first tag that has ended the entry that is there,
--                                             those of its result after the others; 0 = none has
--         {3, holder's token, ms left, stale entry or ''}
--         {4}                                 nobody leads, and the caller only watches
--         {5, 'v' value or 'e' error, body}   what the leader that was waited for left
--         {6, tag block}                      an entry that may answer, but names other tags than were compared
-- Atomic: the look, the lease and the registration, so that no wake-up between them can be lost.
-- Lease: state (1 byte), length of the token (u16), token, stamp. A token is 'task id:nonce'; of a lease that was handed
-- over it is the task id alone.

local tags = ARGV[13] and tonumber(ARGV[13]) or #KEYS - 4
local nonces, missing = {}, false
if tags > 0 then
  nonces = redis.call('MGET', unpack(KEYS, 5, 4 + tags))
  for i = 1, tags do
    if not nonces[i] then missing = true end
  end
end
local stamp = missing and '' or table.concat(nonces)

-- What an entry is compared with: the stamp, and the versions of the tags that its result is thought to have given it.
local compared, all_there, log, more = stamp, not missing, {}, {}
if ARGV[13] then
  log = redis.call('HMGET', KEYS[5 + tags], '@epoch', '@count')
  if #KEYS > 5 + tags then more = redis.call('MGET', unpack(KEYS, 6 + tags)) end
  for i = 1, #KEYS - 5 - tags do
    if more[i] then compared = compared .. more[i] else all_there = false end
  end
end

local lease = redis.call('GET', KEYS[2])
local holder, lease_stamp, handed = false, '', false
if lease then
  local length = struct.unpack('<H', lease, 2)
  holder = string.sub(lease, 4, 3 + length)
  lease_stamp = string.sub(lease, 4 + length)
  handed = string.sub(lease, 1, 1) == 'h' and ARGV[8] ~= '' and holder == ARGV[8]
end

-- An entry is valid if its stamp is current and it names the tags that were compared (entry.py has the layout). Who
-- claims a lease that was handed over is to compute even so. One that names other tags of its result can only be judged
-- by somebody who asks for these, but only if the stamp of the others is current.
local stale, outdated = '', 0
if not missing and ARGV[6] ~= '' then
  local entry = redis.call('GET', KEYS[1])
  if entry and #entry >= 46 + #stamp and string.sub(entry, 1, 3) == 'ct\1' then
    local _, fresh_until, expires_at, _, count, length = struct.unpack('<ddddHI4', entry, 5)
    local now, block = tonumber(ARGV[6]), string.sub(entry, 47, 46 + length)
    local there = string.sub(entry, #entry - 8 * count + 1)
    local usable = not handed and now < expires_at and not (ARGV[7] ~= '' and redis.sha1hex(entry) == ARGV[7])
    if block == ARGV[5] then
      if usable and all_there and there == compared then
        if now < fresh_until then return {1, entry} end
        stale = entry
      end
    elseif usable and ARGV[13] and count >= tags and string.sub(there, 1, #stamp) == stamp
        and string.sub(block, 1, #ARGV[15] - 1) == string.sub(ARGV[15], 1, -2) then
      return {6, block}
    end
    -- Why it does not answer, for those who count; its own tags alone can be judged if it names others of its result.
    for i = 1, now < expires_at and count >= tags and (block == ARGV[5] and tags + #more or tags) or 0 do
      local version = i > tags and more[i - tags] or nonces[i]
      if outdated == 0 and version ~= string.sub(there, 8 * i - 7, 8 * i) then outdated = i end
    end
  end
end

-- What one attempt of a task id left is for those, too, who have waited for an earlier one, or before it began.
local function task_of(token) return string.match(token, '^(.+):[^:]*$') end
local function is_by(author, token)
  local task = task_of(author)
  return author == token or (task and (task == token or task == task_of(token)))
end

-- What was left under an outdated stamp is nobody's: the caller may have come after the invalidation. Which tags a result
-- would have given is unknown here: with any invalidation, what it left is nobody's either.
local left = redis.call('GET', KEYS[4])
local author = ''
if left then
  local length = struct.unpack('<H', left, 2)
  author = string.sub(left, 4, 3 + length)
  local stamp_length = struct.unpack('<H', left, 4 + length)
  local at = 6 + length
  if ARGV[12] ~= '' and not handed and not missing and is_by(author, ARGV[12])
      and string.sub(left, at, at + stamp_length - 1) == stamp .. (log[1] or '') .. (log[2] or '') then
    return {5, string.sub(left, 1, 1), string.sub(left, at + stamp_length)}
  end
end

-- A lease under an outdated stamp is never waited for: its holder's commit will be refused.
if lease and not missing and lease_stamp == stamp then
  local replaced = ARGV[9] == '*' or (ARGV[9] ~= '' and holder == ARGV[9])
  if not (holder == ARGV[1] or handed or replaced) then
    local left = redis.call('PTTL', KEYS[2])
    if ARGV[10] ~= '' then
      redis.call('SADD', KEYS[3], ARGV[10])
      redis.call('PEXPIRE', KEYS[3], math.max(left, tonumber(ARGV[2])) * 2)
    end
    return {3, holder, left, stale}
  end
end

if ARGV[11] == 'w' then return {4} end

local there = missing and ARGV[6] ~= '' and redis.call('EXISTS', KEYS[1]) == 1
for i = 1, tags do
  if not nonces[i] then
    if there and outdated == 0 then outdated = i end
    nonces[i] = string.sub(ARGV[4], 8 * i - 7, 8 * i)
    redis.call('SET', KEYS[4 + i], nonces[i], 'PX', math.floor(1.1 * ARGV[3]))
  elseif redis.call('PTTL', KEYS[4 + i]) < tonumber(ARGV[3]) then
    redis.call('PEXPIRE', KEYS[4 + i], math.floor(1.1 * ARGV[3]))
  end
end
-- Who waits for this attempt from now on is not to have what an earlier one of its task id left.
if left and is_by(author, ARGV[1]) then redis.call('DEL', KEYS[4]) end

if ARGV[13] then
  local name = KEYS[5 + tags]
  if not log[1] then
    log = {ARGV[14], '0'}
    redis.call('HSET', name, '@epoch', log[1], '@count', log[2])
  end
  if redis.call('PTTL', name) < tonumber(ARGV[3]) then redis.call('PEXPIRE', name, ARGV[3]) end
end

stamp = table.concat(nonces)
redis.call('SET', KEYS[2], ARGV[11] .. struct.pack('<H', #ARGV[1]) .. ARGV[1] .. stamp, 'PX', ARGV[2])
return {2, stamp, stale, outdated, log[1], log[2]}
