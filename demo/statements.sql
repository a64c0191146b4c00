-- The statements that took the most time between the first and the last snapshot of their server, out of the repository's history.
-- Variables: columns (of the terminal), limit (of rows), and the escape sequences of colours.
SELECT :'bold' || left('HEAVIEST STATEMENTS between the first and the last snapshot in the repository', :columns) || :'plain';
SELECT :'dim' || left(format('%9s %7s %8s %5s  %-8s %-8s %s',
    'TIME ms', 'CALLS', 'MEAN ms', 'HIT %', 'SERVER', 'DATABASE', 'STATEMENT'), :columns) || :'plain';

WITH
-- PoWA packs every hundred snapshots of a statement into one row.
records AS (
    SELECT srvid, dbid, userid, queryid, (record).* FROM powa_statements_history_current
    UNION ALL
    SELECT srvid, dbid, userid, queryid, record.* FROM powa_statements_history, unnest(records) AS record
),
first_snapshots AS (
    SELECT srvid, min(ts) AS first FROM records GROUP BY srvid
),
totals AS (
    -- The counters only grow. What was not yet there in the first snapshot began at nought.
    SELECT srvid, dbid, userid, queryid,
        max(total_exec_time) - coalesce(min(total_exec_time) FILTER (WHERE ts = first), 0) AS time,
        max(calls) - coalesce(min(calls) FILTER (WHERE ts = first), 0) AS calls,
        max(shared_blks_hit) - coalesce(min(shared_blks_hit) FILTER (WHERE ts = first), 0) AS hit,
        max(shared_blks_read) - coalesce(min(shared_blks_read) FILTER (WHERE ts = first), 0) AS read
    FROM records JOIN first_snapshots USING (srvid)
    GROUP BY srvid, dbid, userid, queryid
)
SELECT format('%9s %7s %8s %5s  %-8s %-8s %s',
        round(time::numeric, 1),
        calls,
        round((time / calls)::numeric, 2),
        coalesce(round(100.0 * hit / nullif(hit + read, 0))::text, '-'),
        left(alias, 8),
        left(datname, 8),
        left(regexp_replace(trim(query), '\s+', ' ', 'g'), :columns - 52))
FROM totals
JOIN powa_statements AS s USING (srvid, dbid, userid, queryid)
JOIN powa_servers ON powa_servers.id = srvid
LEFT JOIN powa_databases AS d ON d.srvid = s.srvid AND d.oid = s.dbid
WHERE calls > 0
ORDER BY time DESC
LIMIT :limit;
