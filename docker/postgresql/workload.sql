-- What pgbench lacks: a filter that no index serves, a join with an aggregate, and a wait for a lock now and then.
\set branch random(1, 2)
\set low random(-5000, 4000)
SELECT count(*) FROM pgbench_accounts WHERE abalance BETWEEN :low AND :low + 1000 AND bid = :branch;
SELECT b.bid, b.bbalance, count(*), sum(t.tbalance) FROM pgbench_branches b JOIN pgbench_tellers t USING (bid) GROUP BY b.bid, b.bbalance;
BEGIN;
UPDATE pgbench_branches SET bbalance = bbalance WHERE bid = :branch;
\sleep 50 ms
COMMIT;
