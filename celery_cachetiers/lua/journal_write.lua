-- Takes writes into a sink's journal, in their order.
--
-- KEYS  1 values   2 due   3 birth   4 last sequence   5 attempts
-- ARGV  1 records that there may be   2.. key and body of each write
-- Returns the sequence of each, 0 for one that was not taken: the journal is full and does not have its key.
-- values: key -> sequence (u64, big-endian), body. due: key -> when a flusher may claim it, or until when it is claimed.
-- birth: key -> its first write that no sink has taken. All instants are the server's, in microseconds; records of one
-- script are a microsecond apart, as equal ones would be in the order of their keys.
-- A sequence is above the one before it and not below the server's clock, so that it survives a journal that is lost.
-- Atomic: all of it. A full server refuses the script at its first write, and nothing has happened.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', KEYS[4]) or '0')
local room = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[3])
local born = now
local sequences = {}
for i = 2, #ARGV, 2 do
  local key = ARGV[i]
  local known = redis.call('HEXISTS', KEYS[1], key) == 1
  if known or room > 0 then
    last = math.max(last + 1, now)
    redis.call('HSET', KEYS[1], key, struct.pack('>I8', last) .. ARGV[i + 1])
    redis.call('SET', KEYS[4], string.format('%.0f', last))
    if known then
      redis.call('HDEL', KEYS[5], key)
    else
      room = room - 1
      redis.call('ZADD', KEYS[2], born, key)
      redis.call('ZADD', KEYS[3], born, key)
      born = born + 1
    end
    sequences[#sequences + 1] = last
  else
    sequences[#sequences + 1] = 0
  end
end
return sequences
