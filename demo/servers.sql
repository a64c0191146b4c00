-- The state of each server, and what the repository has of it. Variables: states (the collector's answer to WORKERS_STATUS),
-- columns (of the terminal), and the escape sequences of colours.
SELECT least(34, greatest(12, :columns - 82)) AS state_width \gset
SELECT :columns - 57 - :state_width AS errors_width \gset

SELECT :'bold' || left(format('%-12s %-15s %-*s %9s %8s %6s  %s',
    'SERVER', 'ADDRESS', :state_width, 'STATE', 'SNAPSHOTS', 'LAST', 'AGE', 'ERRORS'), :columns) || :'plain';

SELECT format('%-12s %-15s %s%-*s%s %9s %8s %6s  %s%s%s',
        left(alias, 12),
        hostname || ':' || port,
        CASE state WHEN 'running' THEN :'good' ELSE :'bad' END, :state_width, left(state, :state_width), :'plain',
        snapshots,
        coalesce(to_char(last, 'HH24:MI:SS'), '-'),
        coalesce(round(extract(epoch FROM clock_timestamp() - last))::text || ' s', '-'),
        CASE WHEN errors = '{}' THEN :'good' ELSE :'bad' END,
        left(CASE WHEN errors = '{}' THEN 'none' ELSE cardinality(errors) || ': ' || array_to_string(errors, '; ') END,
             :errors_width),
        :'plain')
FROM (
    SELECT id, alias, hostname, port,
        coalesce(states.value, 'no answer') AS state,
        -- PoWA counts snapshots from 1.
        coalesce_seq - 1 AS snapshots,
        nullif(snapts, '-infinity') AS last,
        coalesce(errors, '{}') AS errors
    FROM powa_servers
    JOIN powa_snapshot_metas ON srvid = id
    LEFT JOIN json_each_text(:'states') AS states ON states.key = id::text
    WHERE id > 0
) AS servers
ORDER BY id;
