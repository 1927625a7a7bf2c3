//! What Linux says of a process: processor time and memory.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Processor time of all its threads so far, in user and kernel mode.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has a name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks =
        || anyhow::Ok(fields.next().context("/proc/PID/stat is short")?.parse::<u64>()?);
    let ticks = ticks()? + ticks()?;
    // SAFETY: sysconf takes any name.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second).context("ticks of a second")?;
    Ok(Duration::from_micros(ticks * 1_000_000 / per_second))
}

/// The most resident memory it ever had, in bytes.
pub(crate) fn peak_resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

/// `(model, number)` of the processors.
pub(crate) fn processors() -> (String, usize) {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    (model.to_owned(), std::thread::available_parallelism().map_or(1, usize::from))
}

/// Memory of the machine in bytes.
pub(crate) fn memory_bytes() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Kernel's release.
pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
