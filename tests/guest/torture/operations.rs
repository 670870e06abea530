//! What is being done when something is killed: a row an operation.

/// What may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The daemon.
    Daemon,
    /// The QEMU that runs `vm`.
    Qemu,
    /// Whichever `qemu-img` runs.
    QemuImg,
}

/// What `vm` does at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    Off,
    Ready,
}

/// What becomes of what the guest has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// It is there, whatever happens.
    Kept,
    /// The VM may be back in time.
    MayReturn,
    /// It is there, but for what was written since the start.
    Thrown,
}

/// An operation. The VM `vm` has the snapshots `base`, taken while it was off, and `live`; `image`
/// was made of it; `$N` is a number that is new each time.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) from: Power,
    /// Undisturbed, before.
    pub(crate) prepare: &'static str,
    /// Returns when all is done that follows from it.
    pub(crate) script: &'static str,
    pub(crate) victims: &'static [Victim],
    pub(crate) past: Past,
}

const DISK: &[Victim] = &[Victim::Daemon, Victim::QemuImg];
const MACHINE: &[Victim] = &[Victim::Daemon, Victim::Qemu];
const ALL: &[Victim] = &[Victim::Daemon, Victim::Qemu, Victim::QemuImg];

/// Waits until no image is being made.
macro_rules! made {
    () => {
        "; while grep -qsE 'fetching|building' .images/*/status; do sleep 0.02; done"
    };
}

pub(crate) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "start",
        from: Power::Off,
        prepare: "",
        script: "echo start > vm/ctl; cat vm/ready",
        victims: MACHINE,
        past: Past::Kept,
    },
    Operation {
        name: "start for the first time, from an image",
        from: Power::Off,
        prepare: "mkdir clone$N; echo image > clone$N/config/image",
        script: "echo start > clone$N/ctl; cat clone$N/ready",
        victims: ALL,
        past: Past::Kept,
    },
    Operation {
        name: "start ephemeral",
        from: Power::Off,
        prepare: "echo 1 > vm/config/ephemeral",
        script: "echo start > vm/ctl; cat vm/ready",
        victims: ALL,
        past: Past::Thrown,
    },
    Operation {
        name: "stop",
        from: Power::Ready,
        prepare: "",
        script: "echo stop > vm/ctl; cat vm/wait",
        victims: MACHINE,
        past: Past::Kept,
    },
    Operation {
        name: "suspend and start",
        from: Power::Ready,
        prepare: "",
        script: "echo suspend > vm/ctl; cat vm/wait; echo start > vm/ctl; cat vm/ready",
        victims: MACHINE,
        past: Past::Kept,
    },
    Operation {
        name: "take a snapshot, off",
        from: Power::Off,
        prepare: "",
        script: "mkdir vm/snapshots/t$N; cat vm/wait",
        victims: DISK,
        past: Past::Kept,
    },
    Operation {
        name: "take a snapshot, live",
        from: Power::Ready,
        prepare: "",
        script: "mkdir vm/snapshots/t$N; cat vm/wait",
        victims: MACHINE,
        past: Past::Kept,
    },
    Operation {
        name: "restore, off",
        from: Power::Off,
        prepare: "",
        script: "echo 'restore base' > vm/ctl; cat vm/wait",
        victims: DISK,
        past: Past::MayReturn,
    },
    Operation {
        name: "restore, live",
        from: Power::Ready,
        prepare: "",
        script: "echo 'restore live' > vm/ctl; cat vm/wait",
        victims: MACHINE,
        past: Past::MayReturn,
    },
    Operation {
        name: "mv of snapshots",
        from: Power::Off,
        prepare: "",
        script: "cd vm/snapshots; for n in $(seq 10); do mv base b$n; mv b$n base; done",
        victims: &[Victim::Daemon],
        past: Past::Kept,
    },
    Operation {
        name: "rmdir of a snapshot, off",
        from: Power::Off,
        prepare: "mkdir vm/snapshots/t$N",
        script: "rmdir vm/snapshots/t$N; cat vm/wait",
        victims: DISK,
        past: Past::Kept,
    },
    Operation {
        name: "rmdir of a snapshot, live",
        from: Power::Ready,
        prepare: "mkdir vm/snapshots/t$N; cat vm/wait",
        script: "rmdir vm/snapshots/t$N; cat vm/wait",
        victims: MACHINE,
        past: Past::Kept,
    },
    Operation {
        name: "publish",
        from: Power::Off,
        prepare: "mkdir .images/p$N",
        script: concat!("echo vm > .images/p$N/source", made!()),
        victims: DISK,
        past: Past::Kept,
    },
    Operation {
        name: "publish a snapshot",
        from: Power::Off,
        prepare: "mkdir .images/p$N",
        script: concat!("echo vm@base > .images/p$N/source", made!()),
        victims: DISK,
        past: Past::Kept,
    },
    Operation {
        name: "publish, live",
        from: Power::Ready,
        prepare: "mkdir .images/p$N",
        script: "echo vm > .images/p$N/source; cat .images/p$N/wait; cat vm/wait",
        victims: ALL,
        past: Past::Kept,
    },
    Operation {
        name: "warm",
        from: Power::Off,
        prepare: "",
        script: "echo warm > .images/image/ctl; cat .images/image/wait",
        victims: ALL,
        past: Past::Kept,
    },
    Operation {
        name: "clone",
        from: Power::Off,
        prepare: "echo warm > .images/image/ctl; cat .images/image/wait
                  grep -q ^yes .images/image/warm
                  mkdir clone$N; echo image > clone$N/config/image",
        script: "echo start > clone$N/ctl; cat clone$N/ready",
        victims: MACHINE,
        past: Past::Kept,
    },
    Operation {
        name: "fork",
        from: Power::Ready,
        prepare: "",
        script: "echo fork clone$N > vm/ctl; cat clone$N/ready vm/ready",
        // A copy whose QEMU is killed before it is loaded has nothing to start from.
        victims: DISK,
        past: Past::Kept,
    },
    Operation {
        name: "rmdir of an image",
        from: Power::Off,
        prepare: concat!("mkdir .images/p$N; echo vm@base > .images/p$N/source", made!()),
        script: "rmdir .images/p$N",
        victims: &[Victim::Daemon],
        past: Past::Kept,
    },
    Operation {
        name: "remove and bring back",
        from: Power::Off,
        prepare: "",
        script: "for n in 1 2 3; do rmdir vm; mv .trash/vm@* vm; done",
        victims: &[Victim::Daemon],
        past: Past::Kept,
    },
    Operation {
        name: "settings",
        from: Power::Off,
        prepare: "",
        script: "for n in $(seq 20); do echo $n > vm/config/cpus; mv vm v; mv v vm; done
                 echo 1 > vm/config/cpus",
        victims: &[Victim::Daemon],
        past: Past::Kept,
    },
];
