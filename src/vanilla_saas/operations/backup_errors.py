"""Refusals of backup and restore, each with a stable code (docs/design/backup.md lists them; a test compares)."""

import errno

from vanilla_saas.database.errors import VanillaError

BACKUP_CODES = {
    "backup_not_found": "There is no backup of that name, or none at all.",
    "backup_foreign": "The folder is not a backup that `vanilla-saas backup` made.",
    "backup_damaged": "A file of the backup is missing, cut off or changed.",
    "backup_newer": "The backup was made by a newer version of the product or of its schema.",
    "backup_other_schema": "The backup is of another version of the ten files; it can be reloaded.",
    "backup_locked": "The backup is encrypted and the passphrase is missing or wrong.",
    "backup_filtered": "The login may not read every row, so a dump would be short.",
    "backup_busy": "Another backup is being written into the same folder.",
    "backup_disk_full": "The disk filled; nothing was kept.",
    "backup_programs_missing": "No pg_dump, pg_restore or psql fits the server.",
    "backup_failed": "pg_dump failed; its last lines follow, and nothing was kept.",
    "restore_forbidden": "The login is no superuser, which a restore needs.",
    "restore_not_empty": "The database holds something, and `--replace` was not said.",
    "restore_in_use": "Others are connected to the database that would be replaced.",
    "restore_key_shared": "The copy would accept the original's tokens: it has the same context key.",
    "restore_failed": "pg_restore failed; its last lines follow, and the database is as it was.",
    "restore_differs": "What was restored is not what was backed up, or does not pass its checks.",
    "restore_loses": "The new schema has no place for something the backup holds.",
}


class BackupError(VanillaError):
    """A refusal of backup or restore; over HTTP an `invalid_state`."""

    def __init__(self, code: str, message: str, hint: str | None = None):
        assert code in BACKUP_CODES
        super().__init__("invalid_state", message, {"reason": code}, hint)
        self._reason = code

    @property
    def name(self) -> str:
        return self._reason


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_full(where: object) -> BackupError:
    return BackupError(
        "backup_disk_full",
        f"There is no space left in {where}; the unfinished backup was removed.",
        "Make room, lower --keep, or name another folder with --to.",
    )
