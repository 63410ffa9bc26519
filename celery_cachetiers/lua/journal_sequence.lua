-- A sequence for a write that goes past the journal.
--
-- KEYS  1 last sequence
-- Returns it: above the one before, and not below the server's clock in microseconds.
-- A full server gives one too, as that is when writes go past the journal: what takes memory is not the first write.

local time = redis.call('TIME')
local last = math.max(tonumber(redis.call('GETDEL', KEYS[1]) or '0') + 1, time[1] * 1000000 + time[2])
redis.call('SET', KEYS[1], string.format('%.0f', last))
return last
