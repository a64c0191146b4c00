-- Which of the tables in $1 (quoted names) this session may vacuum: VACUUM itself only warns of the others.
SELECT wanted.name
FROM pg_catalog.unnest($1::pg_catalog.text[]) AS wanted (name)
JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass(wanted.name)
WHERE CASE
    WHEN pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 170000
    THEN pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')
    ELSE pg_catalog.pg_has_role(c.relowner, 'USAGE')
END
OR EXISTS (
    SELECT
    FROM pg_catalog.pg_database AS d
    WHERE d.datname = pg_catalog.current_database() AND pg_catalog.pg_has_role(d.datdba, 'USAGE'))
