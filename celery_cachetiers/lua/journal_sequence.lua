-- A sequence for a write that goes past the journal.
--
-- KEYS  1 last sequence
-- Returns it: above the one before, and not below the server's clock in microseconds.

local time = redis.call('TIME')
local last = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') + 1, time[1] * 1000000 + time[2])
redis.call('SET', KEYS[1], string.format('%.0f', last))
return last
