#!/bin/sh
# Runs once, when the database container makes its data: the login that migrates, which no superuser's rights help, and
# its database.
set -eu
psql -X -v ON_ERROR_STOP=1 -v password="$VANILLA_SAAS_OWNER_PASSWORD" -U "${POSTGRES_USER:-postgres}" -d postgres <<'SQL'
create role vanilla login nosuperuser createrole password :'password';
create database vanilla_saas owner vanilla;
SQL
