//! Looking: whether a mount, its store and its guests are as the model says.
//!
//! Nothing here changes anything, except that looking into a guest drops its page cache, so that
//! its disk is read and not what it remembers of it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::data_disks::DEVICE;
use super::model::{Content, Model, Power, Vm};
use super::operations::PROGRAMS;
use crate::common::Mounted;

/// How wrong a guest's clock may be.
const SECONDS: u64 = 2;

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The same for failures of one kind.
    pub(crate) kind: String,
    pub(crate) text: String,
}

impl Finding {
    pub(crate) fn new(kind: &str, text: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), text: text.into() }
    }
}

pub(crate) type Checked = Result<(), Finding>;

fn compare<T>(kind: &str, what: &str, is: &T, expected: &T) -> Checked
where
    T: PartialEq + std::fmt::Debug + ?Sized,
{
    match is == expected {
        true => Ok(()),
        false => Err(Finding::new(kind, format!("{what}: {expected:?} expected, {is:?} found"))),
    }
}

/// Compares all that is listed and all that costs no guest's answer.
pub(crate) fn tree(aq: &Mounted, model: &Model) -> Checked {
    let listed = |dir: &str| {
        let text = aq.sh(&format!("ls {dir}")).stdout;
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    compare("names", "ls", &listed(""), &model.vms.keys().cloned().collect())?;
    compare("images", "ls .images", &listed(".images"), &model.images.keys().cloned().collect())?;
    let mut removed: Vec<_> = model.trash.iter().map(|removed| removed.name.clone()).collect();
    removed.sort();
    let name = |listed: String| listed.split('@').next().unwrap_or_default().to_owned();
    let trash: Vec<_> = listed(".trash").into_iter().map(name).collect();
    compare("trash", "ls .trash", &trash, &removed)?;
    directories(aq, model)?;
    for (name, vm) in &model.vms {
        let status = aq.read(&format!("{name}/status"));
        let word = status.split(':').next().unwrap_or_default();
        compare("status", &format!("{name}/status ({status})"), word, vm.power.word())?;
        snapshots(aq, name, vm, &listed(&format!("{name}/snapshots")))?;
    }
    Ok(())
}

/// What guests and the host have written to the directories that are shared stays, whatever happens to VMs.
fn directories(aq: &Mounted, model: &Model) -> Checked {
    for (number, mark) in &model.shared {
        let file = format!("{}.shared/{number}/mark", aq.store().root().display());
        let found = std::fs::read_to_string(file).unwrap_or_default();
        compare("share on the host", &format!("share {number}"), found.trim(), &*mark.to_string())?;
    }
    Ok(())
}

fn snapshots(aq: &Mounted, name: &str, vm: &Vm, listed: &[String]) -> Checked {
    let expected: Vec<_> = vm.snapshots.keys().cloned().collect();
    compare("snapshots", &format!("ls {name}/snapshots"), listed, expected.as_slice())?;
    for (tag, saved) in &vm.snapshots {
        let bytes = aq.read(&format!("{name}/snapshots/{tag}/memory"));
        let what = format!("{name}/snapshots/{tag}/memory is {bytes}; some");
        compare("snapshot's memory", &what, &(bytes != "0"), &saved.memory.is_some())?;
    }
    Ok(())
}

/// The disk of a VM that is off is sound, and qemu-img lists the snapshots that `ls` does.
pub(crate) fn disk(aq: &Mounted, name: &str, vm: &Vm) -> Checked {
    if vm.disk.is_none() || !vm.power.is_off() {
        return Ok(());
    }
    let check = aq.sh(&format!("qemu-img check -q $(readlink {name}/disk)"));
    // A QEMU that was killed leaves clusters that the next start gives back.
    let tolerated = vm.power == Power::Failed && check.code == 3;
    if check.code != 0 && !tolerated {
        return Err(Finding::new("qemu-img check", format!("{name}: {check:?}")));
    }
    bytes(aq, name, vm)?;
    let listed =
        |script: &str| -> Vec<String> { aq.sh(script).stdout.lines().map(str::to_owned).collect() };
    let ours = listed(&format!("ls {name}/snapshots"));
    let table =
        format!("qemu-img snapshot -l $(readlink {name}/disk) | awk 'NR > 2 {{ print $2 }}'");
    let mut qemus = listed(&format!("{table} | grep -v '^[.]' | sort"));
    // What was dropped while the VM was off may still be in the disk.
    qemus.retain(|tag| ours.contains(tag) || !vm.marked.contains(tag));
    compare("snapshots", &format!("{name}: ls and qemu-img"), &ours, &qemus)
}

/// The disk of a VM without a guest begins as its image's did.
fn bytes(aq: &Mounted, name: &str, vm: &Vm) -> Checked {
    let Some(disk) = vm.disk.filter(|disk| disk.content == Content::Bytes) else { return Ok(()) };
    let head = format!(
        "qemu-img dd -f qcow2 -O raw bs=512 count=1 if=$(readlink {name}/disk) of=$SCRATCH/head &&
         tr -d '\\0' < $SCRATCH/head"
    );
    let found = aq.sh(&head).stdout.trim_end().to_owned();
    compare("version", &format!("{name}: the disk's beginning"), &found, &beginning(disk.version))
}

/// What a disk of the mirror begins with; nothing for an empty one.
pub(crate) fn beginning(version: u32) -> String {
    if version == 0 { String::new() } else { format!("version {version}") }
}

/// What a guest says of itself: lines of a word and a value.
const PROBE: &str = "echo 3 > /proc/sys/vm/drop_caches
    sum() { echo $(cat $1/mark || echo 0) $(sha256sum < $1/data | cut -c 1-16); }
    echo urandom $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' ')
    echo date $(date +%s)
    { echo disk $(sum /root); echo memory $(sum /dev/shm); } 2> /dev/null
    echo version $(cat /etc/version 2> /dev/null || echo 0)
    echo process $([ ! -e /dev/shm/pid ] || tr '\\0' ' ' < /proc/$(cat /dev/shm/pid)/cmdline)
    echo hostname $(hostname)
    echo machine-id $(cat /etc/machine-id)
    echo mac $(cat /sys/class/net/eth0/address)
    seed=/run/aqfs/seed; [ -d $seed ] || seed=/dev/aqfs$seed
    echo host-key $(sha256sum < $seed/dropbear_ed25519_host_key | cut -c 1-16)
    echo cpus $(nproc)
    echo sectors $(cat /sys/class/block/vda/size)";

/// Says whether a clock that is wrong runs too fast or too slow, and what it is.
const CLOCK: &str = "for n in 1 2 3; do
    echo 'date +%s' > VM/exec; echo guest $(timeout 20 cat VM/exec) host $(date +%s.%N); sleep 2; done
    echo \"dmesg | grep -E 'tsc|clocksource|rtc'; cat /proc/uptime
    cat /sys/devices/system/clocksource/clocksource0/current_clocksource\" > VM/exec
    timeout 20 cat VM/exec";

/// What no two VMs have in common, and what a VM has all its life.
const IDENTITY: &[&str] = &["machine-id", "mac", "host-key"];

/// What is known of VMs that have been looked into, by their numbers in the model.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    identities: BTreeMap<u32, Vec<String>>,
    /// Whose random bytes were seen. A VM that goes back to a snapshot twice may draw the same twice.
    random: BTreeMap<String, u32>,
}

impl Guests {
    /// Looks into a guest that is ready.
    pub(crate) fn look(&mut self, aq: &Mounted, name: &str, vm: &Vm) -> Checked {
        let (Power::Ready, Some(disk), Some(running)) = (vm.power, vm.disk, &vm.running) else {
            return Ok(());
        };
        let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let before = seconds();
        let said = aq.sh(&format!(
            "cat > {name}/exec <<'END'\n{PROGRAMS}\n{PROBE}\nEND\ntimeout 60 cat {name}/exec; cat {name}/error >&2"
        ));
        let now = seconds();
        let value = |key: &str| {
            let line = said.stdout.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
            line.map(|l| l.trim().to_owned())
                .ok_or_else(|| Finding::new("no answer", format!("{name}: no {key} in {said:?}")))
        };
        let same = |kind: &str, expected: String| {
            compare(kind, &format!("{name}: {kind}"), &value(kind)?, &expected)
        };
        same("disk", content(disk.mark))?;
        files(aq, name, disk.mark, running.memory.mark)?;
        same("version", disk.version.to_string())?;
        same("memory", content(running.memory.mark))?;
        same("hostname", running.memory.hostname.clone())?;
        same("cpus", running.shape.cpus.to_string())?;
        same("sectors", (u64::from(disk.size) << 21).to_string())?;
        let process = value("process").unwrap_or_default();
        let expected = match running.memory.mark {
            0 => String::new(),
            mark => format!("sleep {}", 1_000_000 + mark),
        };
        compare("process", &format!("{name}: process"), &process, &expected)?;
        let date: u64 = value("date")?.parse().unwrap_or_default();
        if date + SECONDS < before || date > now + SECONDS {
            let later = aq.sh(&CLOCK.replace("VM", name));
            let text =
                format!("{name}: its clock shows {date}, the host's {now}\n{}", later.stdout);
            return Err(Finding::new("clock", text));
        }
        let identity = IDENTITY.iter().map(|key| value(key)).collect::<Result<Vec<_>, _>>()?;
        self.identify(name, vm.id, &identity)?;
        match self.random.insert(value("urandom")?, vm.id) {
            Some(other) if other != vm.id => {
                Err(Finding::new("urandom", format!("{name}: another VM's random bytes")))
            }
            _ => Ok(()),
        }
    }

    fn identify(&mut self, name: &str, id: u32, found: &[String]) -> Checked {
        let known = self.identities.entry(id).or_insert_with(|| found.to_owned());
        compare("identity", &format!("{name}: {IDENTITY:?}"), found, known.as_slice())?;
        let others = self.identities.iter().filter(|(other, _)| **other != id);
        for (word, what) in found.iter().zip(IDENTITY) {
            if others.clone().any(|(_, theirs)| theirs.contains(word)) {
                return Err(Finding::new(
                    "identity",
                    format!("{name}: another VM's {what} {word}"),
                ));
            }
        }
        Ok(())
    }
}

/// The guest has the directory that it is to have, with what was written to it last, and no other.
pub(crate) fn share(aq: &Mounted, name: &str, vm: &Vm, model: &Model) -> Checked {
    if vm.power != Power::Ready {
        return Ok(());
    }
    let mark = vm.share.and_then(|share| model.shared.get(&share));
    let expected = mark.map_or_else(|| "none 0".to_owned(), |mark| format!("{mark} 1"));
    let mounted = format!(
        "until [ ! -e {name}/shares/s ] || grep -q ^mounted {name}/shares/s/status; do sleep 0.1; done"
    );
    let probe = "echo $(cat /mnt/s/mark 2> /dev/null || echo none) $(grep -c ' nfs ' /proc/mounts)";
    let said = aq.sh(&format!(
        "timeout 60 bash -c '{mounted}'; cat > {name}/exec <<'END'\n{PROGRAMS}\n{probe}\nEND
         timeout 60 cat {name}/exec; cat {name}/error {name}/shares/s/status >&2"
    ));
    let what = format!("{name}: its share's mark and its mounts ({})", said.stderr.trim_end());
    compare("share in the guest", &what, said.stdout.trim_end(), &*expected)
}

/// The guest has its data disk with what was written to it last, and no other.
pub(crate) fn data_disk(aq: &Mounted, name: &str, vm: &Vm) -> Checked {
    if vm.power != Power::Ready {
        return Ok(());
    }
    let (look, expected) = match vm.data {
        None => ("dev".to_owned(), String::new()),
        Some(mark) => (
            "until [ -n \"$(dev)\" ]; do sleep 0.1; done; echo 3 > /proc/sys/vm/drop_caches
             dd if=$(dev) bs=16 count=1 2> /dev/null | tr -d '\\0 '"
                .to_owned(),
            if mark == 0 { String::new() } else { mark.to_string() },
        ),
    };
    let said = aq.sh(&format!(
        "cat > {name}/exec <<'END'\n{PROGRAMS}\n{DEVICE}; {look}\nEND\ntimeout 60 cat {name}/exec; cat {name}/error {name}/disks/*/status >&2"
    ));
    let what = format!("{name}: its data disk's mark ({})", said.stderr.trim_end());
    compare("data disk", &what, said.stdout.trim_end(), &*expected)
}

/// A guest on the net knows all members and reaches those that are ready; another has no address on it.
pub(crate) fn net(aq: &Mounted, name: &str, vm: &Vm, model: &Model) -> Checked {
    if vm.power != Power::Ready {
        return Ok(());
    }
    let members: Vec<_> = model.vms.iter().filter(|(_, vm)| vm.is_on_net).collect();
    let all: Vec<_> = members.iter().map(|(name, _)| name.as_str()).collect();
    let ready = members.iter().filter(|(_, vm)| vm.power == Power::Ready);
    let ready: Vec<_> = ready.map(|(name, _)| name.as_str()).collect();
    let (look, expected) = match vm.is_on_net {
        true => (
            format!("{KNOWN_MEMBERS}; for vm in {}; do {PING}; done", ready.join(" ")),
            [all, ready].concat().join(" "),
        ),
        false => (NO_ADDRESS.to_owned(), "none".to_owned()),
    };
    let probe = format!(
        "look() {{ echo $({look}); }}
         for n in 1 2 3 4 5 6 7 8 9; do [ \"$(look)\" != '{expected}' ] || break; sleep 1; done; look"
    );
    let said = aq.sh(&format!(
        "cat > {name}/exec <<'END'\n{PROGRAMS}\n{probe}\nEND
         timeout 90 cat {name}/exec; cat {name}/error .nets/lab/hosts >&2"
    ));
    let what = format!("{name}: the net in the guest ({})", said.stderr.trim_end());
    compare("net in the guest", &what, said.stdout.trim_end(), &*expected)
}

const KNOWN_MEMBERS: &str =
    "sed -n '/^# aqfs: the/,/^# aqfs: end/s/^[0-9.]* \\([^ ]*\\) .*/\\1/p' /etc/hosts | sort";
const PING: &str = "ping -c 1 -W 5 $vm > /dev/null && echo $vm";
const NO_ADDRESS: &str = "ip -4 addr | grep -q 'inet .* eth[1-9]' || echo none";

/// What `fs` shows is what the guest has, within the second for which names are remembered.
fn files(aq: &Mounted, name: &str, disk: u32, memory: u32) -> Checked {
    let wanted = format!("{} {}", content(disk), content(memory));
    let look = format!(
        "sum() {{ echo $(cat $1/mark || echo 0) $(sha256sum < $1/data | cut -c 1-16); }} 2> /dev/null
         seen() {{ echo $(sum {name}/fs/root) $(sum {name}/fs/dev/shm); }}
         for n in 1 2 3 4 5 6; do [ \"$(seen)\" != '{wanted}' ] || break; sleep 0.4; done; seen; ls {name}/fs/ 2>&1 | head -3 >&2"
    );
    let said = aq.sh(&look);
    compare("fs", &format!("{name}/fs ({})", said.stderr), said.stdout.trim_end(), &*wanted)
}

/// What a directory's `mark` and `data` say, as the probe reports it.
fn content(mark: u32) -> String {
    if mark == 0 {
        return "0".to_owned();
    }
    let line = format!("{mark}\n");
    let data: Vec<u8> = line.bytes().cycle().take(300_000).collect();
    let sum: String = Sha256::digest(data).iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("{mark} {sum}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_told_as_the_shell_does() {
        // yes 7 | head -c 300000 | sha256sum
        assert_eq!(content(7), "7 c3bbfe8513828ecd");
        assert_eq!(content(0), "0");
    }

    #[test]
    fn an_identity_stays_and_is_unique() {
        let mut guests = Guests::default();
        let words = |word: &str| [word.to_owned(), format!("{word}2"), format!("{word}3")];
        assert!(guests.identify("a", 1, &words("x")).is_ok());
        assert!(guests.identify("a", 1, &words("x")).is_ok());
        assert!(guests.identify("a", 1, &words("y")).is_err());
        assert!(guests.identify("b", 2, &words("x")).is_err());
    }
}
