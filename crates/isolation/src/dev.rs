//! How a container's own `/dev` is mounted, as Docker does it.

/// Options of the tmpfs at `/dev`.
pub const TMPFS_OPTIONS: [&str; 4] = ["nosuid", "strictatime", "mode=755", "size=65536k"];

/// Options of the devpts at `/dev/pts`: terminals of its own, of the group `tty`.
pub const DEVPTS_OPTIONS: [&str; 6] = [
    "nosuid",
    "noexec",
    "newinstance",
    "ptmxmode=0666",
    "mode=0620",
    "gid=5",
];
