-- Before a compute: what waits under its key, and a sequence for what it will give.
--
-- KEYS  1 values   2 last sequence
-- ARGV  1 key
-- Returns the record (sequence, body) or '', and the sequence: above the one before, and not below the server's clock in
-- microseconds.
-- Atomic: both, so that whatever is written under the key after this look has a higher sequence.
-- On a full server too, as that is when writes go past the journal: what takes memory is not the first write.

local time = redis.call('TIME')
local last = math.max(tonumber(redis.call('GETDEL', KEYS[2]) or '0') + 1, time[1] * 1000000 + time[2])
redis.call('SET', KEYS[2], string.format('%.0f', last))
return {redis.call('HGET', KEYS[1], ARGV[1]) or '', last}
