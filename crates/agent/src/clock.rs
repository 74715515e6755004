//! The guest's clocks and its random numbers: what a VM cannot know by itself.

use std::io;

use rustix::fd::AsRawFd;

/// Milliseconds since the kernel started.
pub fn uptime_millis() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for the call and the clock exists since Linux 2.6.39; on an
    // error `now` stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(millis)
}

/// Sets the time of day.
///
/// # Errors
/// What the system says; `EINVAL` for a time that is none.
pub fn set(seconds: i64, nanoseconds: u32) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanoseconds),
    };
    // SAFETY: `time` is valid for the call, which only reads it.
    if unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Most bytes of [`add_entropy`]; the kernel's pool has 256 bits.
const POOL: usize = 512;

/// `struct rand_pool_info` of `linux/random.h`, with room for the bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; POOL],
}

/// `_IOW('R', 0x03, int[2])`
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`: takes the pool into use at once.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Feeds random bytes from the host to the kernel's generator, credited in full, and makes
/// it use them.
///
/// # Errors
/// What the system says.
pub fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    let bytes = bytes.get(..POOL).unwrap_or(bytes);
    if bytes.is_empty() {
        return Ok(());
    }
    let size = libc::c_int::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut info = RandPoolInfo {
        entropy_count: size.saturating_mul(8),
        buf_size: size,
        buf: [0; POOL],
    };
    info.buf[..bytes.len()].copy_from_slice(bytes);
    let random = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/urandom")?;
    // SAFETY: RNDADDENTROPY reads two ints and then `buf_size` bytes, all inside `info`.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn uptime_runs() {
        assert!(super::uptime_millis() > 0);
    }
}
