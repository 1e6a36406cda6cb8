#!/bin/sh
# PgBouncer in transaction mode with the file of docs/pgbouncer.md; the passwords of the two run-time logins come from
# the context key, as `migrate` derives them. After a rotation of that key: start it again.
set -eu
umask 077
folder=$(mktemp -d)
# of "new,former" the former: its passwords are in force until `vanilla-saas context-key expire`
key=${VANILLA_SAAS_CONTEXT_KEY##*,}
password() {
    printf 'login:%s' "$1" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" | sed 's/.* //'
}
for login in vanilla_app vanilla_runtime; do
    printf '"%s" "%s"\n' "$login" "$(password "$login")"
done > "$folder/userlist.txt"
cat > "$folder/pgbouncer.ini" <<INI
[databases]
vanilla_saas = host=${DATABASE_HOST:-database} port=${DATABASE_PORT:-5432} dbname=vanilla_saas

[pgbouncer]
listen_addr = ${LISTEN_ADDRESS:-0.0.0.0}
listen_port = ${LISTEN_PORT:-6432}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $folder/userlist.txt
pool_mode = transaction
default_pool_size = ${POOL_SIZE:-20}
max_client_conn = 1000
INI
exec pgbouncer -q "$folder/pgbouncer.ini"
