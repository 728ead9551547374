//! OpenLDAP's real server on a port and in a folder of the test's own, ended with the value. The gateway's own tests use
//! this file too.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub const PASSWORD: &str = "anns long password";
pub const SUFFIX: &str = "dc=corp,dc=example";
pub const SEARCH_DN: &str = "cn=search,dc=corp,dc=example";
pub const SEARCH_PASSWORD: &str = "of the service account";
pub const ADMIN_DN: &str = "cn=admin,dc=corp,dc=example";
pub const ADMIN_PASSWORD: &str = "of the administrator";

/// Ann is in three groups in different ways, one of a name with a meaning to Kubernetes; the twins share a name; who has
/// no address cannot be a user.
pub const PEOPLE: &str = "\
dn: dc=corp,dc=example
objectClass: dcObject
objectClass: organization
o: Corp
dc: corp

dn: cn=search,dc=corp,dc=example
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: search
userPassword: of the service account

dn: ou=people,dc=corp,dc=example
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=corp,dc=example
objectClass: organizationalUnit
ou: groups

dn: uid=ann,ou=people,dc=corp,dc=example
objectClass: inetOrgPerson
uid: ann
cn: Ann Lee
sn: Lee
displayName: Ann of Corp
mail: ann@corp.example
userPassword: anns long password

dn: uid=twin1,ou=people,dc=corp,dc=example
objectClass: inetOrgPerson
uid: twin1
cn: Twin
sn: Twin
mail: twin1@corp.example
userPassword: anns long password

dn: uid=twin2,ou=people,dc=corp,dc=example
objectClass: inetOrgPerson
uid: twin2
cn: Twin
sn: Twin
mail: twin2@corp.example
userPassword: anns long password

dn: uid=mute,ou=people,dc=corp,dc=example
objectClass: inetOrgPerson
uid: mute
cn: Mute
sn: Mute
userPassword: anns long password

dn: cn=staff,ou=groups,dc=corp,dc=example
objectClass: groupOfNames
cn: staff
member: uid=ann,ou=people,dc=corp,dc=example

dn: cn=system:masters,ou=groups,dc=corp,dc=example
objectClass: groupOfNames
cn: system:masters
member: uid=ann,ou=people,dc=corp,dc=example

dn: cn=unix,ou=groups,dc=corp,dc=example
objectClass: posixGroup
cn: unix
gidNumber: 1000
memberUid: ann

dn: cn=others,ou=groups,dc=corp,dc=example
objectClass: groupOfNames
cn: others
member: uid=twin1,ou=people,dc=corp,dc=example
";

/// Takes Ann out of it.
pub const WITHOUT_ANN: &str = "dn: uid=ann,ou=people,dc=corp,dc=example\nchangetype: delete\n";

/// A running directory.
pub struct Slapd {
    child: Option<Child>,
    folder: tempfile::TempDir,
    /// Plain, and for StartTLS.
    pub port: u16,
    /// TLS from the start; 0 without a certificate.
    pub tls_port: u16,
}

impl Slapd {
    /// With a certificate and its key in PEM, it speaks TLS too.
    pub fn start(tls: Option<(&str, &str)>) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kfbox-slapd-").tempdir()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir(path("data"))?;
        let mut config = String::new();
        for schema in ["core", "cosine", "inetorgperson", "nis"] {
            config += &format!("include /etc/ldap/schema/{schema}.schema\n");
        }
        // It says yes to a name without a password, as some directories do.
        config += "modulepath /usr/lib/ldap\nmoduleload back_mdb\nallow bind_anon_cred bind_anon_dn\n";
        if let Some((certificate, key)) = tls {
            fs::write(path("tls.crt"), certificate)?;
            fs::write(path("tls.key"), key)?;
            config += &format!("TLSCertificateFile {}\nTLSCertificateKeyFile {}\n", path("tls.crt"), path("tls.key"));
        }
        config += &format!(
            "database mdb\nmaxsize 10485760\nsuffix \"{SUFFIX}\"\nrootdn \"{ADMIN_DN}\"\nrootpw \"{ADMIN_PASSWORD}\"\n\
             directory {}\naccess to attrs=userPassword by anonymous auth by * none\n\
             access to * by dn.exact=\"{SEARCH_DN}\" read by * auth\n",
            path("data")
        );
        fs::write(path("slapd.conf"), config)?;
        fs::write(path("people.ldif"), PEOPLE)?;
        let added = Command::new("/usr/sbin/slapadd")
            .args(["-q", "-f", &path("slapd.conf"), "-l", &path("people.ldif")])
            .output()?;
        if !added.status.success() {
            return Err(std::io::Error::other(String::from_utf8_lossy(&added.stderr).into_owned()));
        }
        let mut slapd = Self { child: None, folder, port: 0, tls_port: 0 };
        // A port that was free may be taken before slapd has it.
        for _ in 0..5 {
            slapd.port = free_port()?;
            slapd.tls_port = if tls.is_some() { free_port()? } else { 0 };
            if slapd.resume().is_ok() {
                return Ok(slapd);
            }
        }
        Err(std::io::Error::other("slapd does not start"))
    }

    /// Starts it on the same ports again.
    pub fn resume(&mut self) -> std::io::Result<()> {
        let mut urls = format!("ldap://127.0.0.1:{}/", self.port);
        if self.tls_port != 0 {
            urls += &format!(" ldaps://127.0.0.1:{}/", self.tls_port);
        }
        let config = self.folder.path().join("slapd.conf");
        // With a debug level it stays in the foreground.
        let mut child = Command::new("/usr/sbin/slapd")
            .args(["-d", "0", "-h", &urls, "-f"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if child.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(20) {
                child.kill().ok();
                child.wait()?;
                return Err(std::io::Error::other("slapd does not listen"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
        Ok(())
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Changes entries (LDIF) while it is away for a moment.
    pub fn change(&mut self, ldif: &str) -> std::io::Result<()> {
        let (config, changes) = (self.folder.path().join("slapd.conf"), self.folder.path().join("changes.ldif"));
        fs::write(&changes, ldif)?;
        self.stop();
        let done = Command::new("/usr/sbin/slapmodify").arg("-f").arg(config).arg("-l").arg(changes).output()?;
        if !done.status.success() {
            return Err(std::io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned()));
        }
        self.resume()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
