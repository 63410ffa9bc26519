-- Removes records from the dead-letter for good.
--
-- KEYS  1 dead-letter   2 its order   3 what has overtaken it
-- ARGV  keys
-- Returns how many there were.

redis.call('ZREM', KEYS[2], unpack(ARGV))
redis.call('HDEL', KEYS[3], unpack(ARGV))
return redis.call('HDEL', KEYS[1], unpack(ARGV))
