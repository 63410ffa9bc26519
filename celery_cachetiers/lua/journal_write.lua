-- Takes writes into a sink's journal, in their order.
--
-- KEYS  1 values   2 due   3 birth   4 last sequence   5 attempts   6 taken, see journal_acknowledge.lua
-- ARGV  1 records that there may be   2 '1': the writes yield, or ''
--       3.. key, body and sequence of each write; '' = a new sequence
-- Returns the sequence of each, 0 for one that was not taken: the journal is full and does not have its key.
-- values: key -> sequence (u64, big-endian), body. due: key -> when a flusher may claim it, or until when it is claimed.
-- birth: key -> its first write that no sink has taken. All instants are the server's, in microseconds; records of one
-- script are a microsecond apart, as equal ones would be in the order of their keys.
-- A sequence is above the one before it and not below the server's clock, so that it survives a journal that is lost. One
-- that is given was drawn before, see journal_begin.lua: a newer record of its key has overtaken the write, also one that
-- the sink has taken meanwhile; the write is dropped as if it had been taken just before that one. One that yields is
-- overtaken by any record of its key: whoever computed it did not see that, and drew its sequence elsewhere.
-- Atomic: all of it. A full server refuses the script at its first write, and nothing has happened.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', KEYS[4]) or '0')
local room = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[3])
local born = now
local sequences = {}
local yields = ARGV[2] ~= ''
for i = 3, #ARGV, 3 do
  local key = ARGV[i]
  local given = tonumber(ARGV[i + 2])
  local there = redis.call('HGET', KEYS[1], key)
  local known = there and true
  local overtaken = known and given and (yields or struct.unpack('>I8', there) > given)
  if given and not overtaken then
    overtaken = tonumber(redis.call('ZSCORE', KEYS[6], key) or '0') >= given
  end
  if overtaken then
    sequences[#sequences + 1] = given
  elseif known or room > 0 then
    local sequence = given or math.max(last + 1, now)
    last = math.max(last, sequence)
    redis.call('HSET', KEYS[1], key, struct.pack('>I8', sequence) .. ARGV[i + 1])
    redis.call('SET', KEYS[4], string.format('%.0f', last))
    if known then
      redis.call('HDEL', KEYS[5], key)
    else
      room = room - 1
      redis.call('ZADD', KEYS[2], born, key)
      redis.call('ZADD', KEYS[3], born, key)
      born = born + 1
    end
    sequences[#sequences + 1] = sequence
  else
    sequences[#sequences + 1] = 0
  end
end
return sequences
