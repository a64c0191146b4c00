-- Measurements, and reports on them.
CREATE TABLE sensors (id int PRIMARY KEY, kind text NOT NULL);
CREATE TABLE measurements (sensor int NOT NULL, taken timestamptz NOT NULL, value double precision NOT NULL);
INSERT INTO sensors SELECT n, (ARRAY['temperature', 'pressure', 'humidity'])[1 + n % 3] FROM generate_series(1, 100) AS n;
INSERT INTO measurements
    SELECT 1 + n % 100, now() - n * interval '1 second', 20 + 5 * sin(n / 1000.0) + random() FROM generate_series(1, 200000) AS n;
CREATE INDEX ON measurements (sensor, taken);
CREATE FUNCTION celsius_to_fahrenheit(celsius double precision) RETURNS double precision
    LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN celsius * 9 / 5 + 32; END';
VACUUM ANALYZE;
