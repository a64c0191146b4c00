-- the version of hypopg that could be created here
SELECT a.default_version
FROM pg_catalog.pg_available_extensions AS a
WHERE a.name = 'hypopg'
