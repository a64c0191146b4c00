-- what the collector's role may not do in the repository, and needs to
WITH extension AS (
    -- PoWA, and those that bring tables to copy rows into
    SELECT d.objid AS relation, e.extname,
        pg_catalog.bool_or(c.relname LIKE '%\_src\_tmp') OVER (PARTITION BY e.oid) AS is_collected
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_extension AS e ON
        d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
    JOIN pg_catalog.pg_class AS c ON
        d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
    WHERE d.deptype = 'e' AND c.relkind IN ('r', 'v')
),
relation AS (
    SELECT c.oid, c.relname, c.relkind, n.nspname, extension.extname
    FROM extension
    JOIN pg_catalog.pg_class AS c ON c.oid = extension.relation
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE extension.is_collected
)
SELECT r.extname = 'powa' AS is_powa,
    r.nspname::pg_catalog.text AS schema,
    r.relname::pg_catalog.text AS relation,
    pg_catalog.string_agg(wanted.privilege, ', ' ORDER BY wanted.privilege) AS privileges,
    r.relname IN ('powa_servers', 'powa_extensions', 'powa_extension_config')
        AND NOT pg_catalog.bool_or(wanted.privilege = 'SELECT') AS for_versions
FROM relation AS r
CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS wanted (privilege)
WHERE NOT pg_catalog.has_table_privilege(r.oid, wanted.privilege)
    AND (
        wanted.privilege = 'SELECT'
        OR (r.relkind = 'r' AND (
            r.extname <> 'powa'
            -- history, what it is made of, and the tables that rows are copied into
            OR r.relname ~
            '(_history|_current|_src_tmp|_db|_metrics|_quals|powa_databases|powa_statements|powa_snapshot_metas)$'
        ))
        -- the versions that are kept there
        OR (r.relname = 'powa_servers' AND wanted.privilege = 'UPDATE'
            AND NOT pg_catalog.has_column_privilege(r.oid, 'version', 'UPDATE'))
        OR (r.relname IN ('powa_extensions', 'powa_extension_config') AND EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = r.oid AND a.attname = 'srvid'))
    )
GROUP BY r.extname, r.nspname, r.relname
ORDER BY is_powa DESC, r.relname
