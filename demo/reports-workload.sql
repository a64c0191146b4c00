-- A pgbench script: measurements arrive; now and then somebody wants a report.
\set sensor random(1, 100)
\set report random(1, 15)
INSERT INTO measurements VALUES (:sensor, now(), 20 + random());
SELECT taken, value, celsius_to_fahrenheit(value) FROM measurements WHERE sensor = :sensor ORDER BY taken DESC LIMIT 20;
\if :report = 1
SELECT kind, count(*), avg(value), percentile_cont(0.95) WITHIN GROUP (ORDER BY value)
    FROM measurements JOIN sensors ON sensors.id = sensor GROUP BY kind ORDER BY kind;
\endif
\if :report = 2
SELECT date_trunc('hour', taken) AS hour, min(value), max(value) FROM measurements GROUP BY hour ORDER BY hour;
\endif
