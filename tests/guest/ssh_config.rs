//! OpenSSH's programs with a VM's `ssh_config`, and a real guest.

use crate::common::Mounted;

/// Puts the host's rsync and its libraries into the guest, which has none.
const LEND_RSYNC: &str = r#"
    lent=$SCRATCH/lent; mkdir $lent; cp "$(command -v rsync)" $lent/rsync
    ldd $lent/rsync | grep -o '/[^ ]*' | while read -r lib; do cp -L "$lib" $lent/; done
    cat > $lent/run <<'END'
#!/bin/sh
exec /root/lent/ld-linux* --library-path /root/lent /root/lent/rsync "$@"
END
    chmod 755 $lent/*
    scp -qrp -F vm1/ssh_config $lent vm1:/root/"#;

#[test]
fn nothing_asks_a_question() {
    let aq = Mounted::booted();
    let script = r#"
        set -e
        ssh -F vm1/ssh_config vm1 'hostname; echo error >&2; exit 7' || echo $?
        echo text > "$SCRATCH/a file"
        scp -q -F vm1/ssh_config "$SCRATCH/a file" "vm1:/root/its copy"
        scp -q -F vm1/ssh_config "vm1:/root/its copy" "$SCRATCH/and back"
        cmp "$SCRATCH/a file" "$SCRATCH/and back"
        echo 'get "/root/its copy" third' | (cd $SCRATCH && sftp -q -F $OLDPWD/vm1/ssh_config -b - vm1) >/dev/null
        cat $SCRATCH/third
        mkfifo $SCRATCH/quiet # With an input that has ended, dropbear 2025 hangs the terminal up.
        ssh -tt -F vm1/ssh_config vm1 'test -t 0 && echo terminal' <> $SCRATCH/quiet | tr -d '\r'
        stat -c %s vm1/ssh_config > $SCRATCH/size; wc -c < vm1/ssh_config | cmp - $SCRATCH/size
        cp vm1/ssh_config $SCRATCH/copied; ssh -F $SCRATCH/copied vm1 true
        cd $SCRATCH; ssh='ssh -F mnt/vm1/ssh_config -o ControlPath=m'
        $ssh -o ControlMaster=auto -o ControlPersist=5 vm1 'echo master'
        $ssh -O exit vm1"#;
    let said = aq.sh(script);
    assert_eq!(said.clone().ok(), "vm1\n7\ntext\nterminal\nmaster", "{said:?}");
    // The name follows; the key is known by the identity.
    assert_eq!(aq.sh("mv vm1 web && ssh -F web/ssh_config web hostname").ok(), "vm1");
}

#[test]
fn rsync_copies_both_ways() {
    let aq = Mounted::booted();
    aq.sh(LEND_RSYNC).ok();
    let script = r#"
        set -e
        mkdir -p "$SCRATCH/tree/a dir"; echo x > "$SCRATCH/tree/a dir/a file"; ln -s a $SCRATCH/tree/link
        for way in "$SCRATCH/tree/ vm1:/root/tree/" "vm1:/root/tree/ $SCRATCH/back/"; do
            rsync -a --rsync-path=/root/lent/run -e 'ssh -F vm1/ssh_config' $way
        done
        diff -r --no-dereference $SCRATCH/tree $SCRATCH/back && echo same"#;
    assert_eq!(aq.sh(script).ok(), "same");
}

#[test]
fn another_host_key_is_refused() {
    let aq = Mounted::booted();
    let script = r#"
        ssh-keygen -q -t ed25519 -N '' -f $SCRATCH/other
        known=$(sed -n 's/.*UserKnownHostsFile "\(.*\)"/\1/p' vm1/ssh_config)
        echo "$(cut -d' ' -f1 "$known") $(cat $SCRATCH/other.pub)" > "$known"
        ssh -F vm1/ssh_config vm1 true"#;
    let said = aq.sh(script);
    assert_eq!(said.code, 255, "{said:?}");
    assert!(said.stderr.contains("Host key verification failed"), "{said:?}");
}

#[test]
fn a_vm_that_is_off_is_told_at_once() {
    let aq = Mounted::new();
    aq.sh("mkdir vm1").ok();
    let said = aq.sh("cat vm1/ssh_config > /dev/null && timeout 10 ssh -F vm1/ssh_config vm1 true");
    assert_eq!(said.code, 255, "{said:?}");
    assert!(said.stderr.contains("vm1 is stopped; echo start > ctl first"), "{said:?}");
}

/// Only where ansible is installed: it is large, and `tools/test` says when it is not.
#[test]
#[ignore = "needs ansible: run by tools/test where it is installed"]
fn ansible_works_with_it() {
    let aq = Mounted::booted();
    // The guest has no Python, which `ping` needs.
    let script = "export ANSIBLE_HOME=$SCRATCH/ansible ANSIBLE_SSH_ARGS='-F vm1/ssh_config'
        ansible -i vm1, vm1 -m raw -a hostname";
    let said = aq.sh(script).ok();
    assert!(said.contains("rc=0") && said.contains("\nvm1"), "{said}");
}
