-- Keeps a report and the reading that the next one starts from, unless another report has come first.
--
-- KEYS  1 last reading   2 history
-- ARGV  1 name of the reading that this report started from, or ''
--       2 name of the new one   3 the new reading   4 the report
--       5 how long both are kept, ms   6 time of this report, ms   7 reports that the history has at most, about
-- Returns  1 kept, now or before (the answer was lost)
--          0 another report was made from that reading: this one would count its interval again
-- last reading: a hash of name and moment. history: a stream whose ids are times, ms; one field, report.
-- Atomic: the comparison and both writes. A time that is not after the last report's gets the server's id.

local name = redis.pcall('HGET', KEYS[1], 'name')
if type(name) == 'table' then
  redis.call('DEL', KEYS[1])
  name = false
end
if name == ARGV[2] then return 1 end
if (name or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'name', ARGV[2], 'moment', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])

local function add(id) return redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], id, 'report', ARGV[4]) end
local added = add(ARGV[6])
if type(added) == 'table' and added.err then added = add('*') end
if type(added) == 'table' and added.err then
  redis.call('DEL', KEYS[2])
  add(ARGV[6])
end
redis.call('XTRIM', KEYS[2], 'MINID', '~', string.format('%.0f', ARGV[6] - ARGV[5]))
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 1
