//! A token service for a registry (distribution's "token authentication specification"): the registry
//! sends its clients here, they show a name and password or nothing, and what they get is a JWT that
//! the registry believes because it knows the service's certificate.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey as _};
use serde_json::{Value, json};

use crate::registry::{PASSWORD, USER};

/// Repositories under this name are for everyone.
const PUBLIC: &str = "public/";
/// Seconds that a token holds.
const LIFETIME: u64 = 300;
pub(crate) const SERVICE: &str = "the test registry";
pub(crate) const ISSUER: &str = "the test token service";

/// Requests to the service: path with query, and the user who authenticated.
pub(crate) type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// The running service; it ends with the process.
pub(crate) struct TokenService {
    pub(crate) port: u16,
    /// Certificate that tokens are signed under. PEM.
    pub(crate) certificate: String,
    /// The requests so far.
    pub(crate) asked: Asked,
}

struct Signer {
    key: KeyPair,
    /// Base64 of the certificate's DER, as in a JWT's `x5c`.
    certificate: String,
}

impl TokenService {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = CertificateParams::new(vec!["tokens.test".to_owned()])?.self_signed(&key)?;
        let signer = Arc::new(Signer {
            key,
            certificate: BASE64_STANDARD.encode(certificate.der()),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let service = Self {
            port: listener.local_addr()?.port(),
            certificate: certificate.pem(),
            asked: Arc::default(),
        };
        let asked = Arc::clone(&service.asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (signer, asked) = (Arc::clone(&signer), Arc::clone(&asked));
                thread::spawn(move || answer(&stream, &signer, &asked));
            }
        });
        Ok(service)
    }
}

/// Reads one request and answers it.
fn answer(
    stream: &TcpStream,
    signer: &Signer,
    asked: &Mutex<Vec<(String, Option<String>)>>,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect::<Vec<_>>();
    let shown = headers.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("authorization")
            .then(|| value.trim().to_owned())
    });
    let right = format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let user = shown
        .as_ref()
        .filter(|shown| **shown == right)
        .map(|_| USER.to_owned());
    asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((target.clone(), user.clone()));
    let (status, body) = if shown.is_some() && user.is_none() {
        ("401 Unauthorized", json!({"details": "wrong name or password"}))
    } else {
        let token = signer.token(&target, user.is_some());
        (
            "200 OK",
            json!({"token": token, "access_token": token, "expires_in": LIFETIME}),
        )
    };
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

impl Signer {
    /// A token for the scopes in a request: all for whoever authenticated, public ones for others.
    fn token(&self, target: &str, authenticated: bool) -> String {
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let scopes = query.split('&').filter_map(|pair| pair.strip_prefix("scope="));
        let access = scopes.filter_map(|scope| {
            let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
            let mut parts = scope.splitn(3, ':');
            let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
            let allowed = authenticated || name.starts_with(PUBLIC);
            let actions = actions.split(',').filter(|_| allowed).collect::<Vec<_>>();
            Some(json!({"type": kind, "name": name, "actions": actions}))
        });
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let claims = json!({
            "iss": ISSUER, "sub": "", "aud": SERVICE, "jti": "1", "access": access.collect::<Vec<_>>(),
            "nbf": now - 60, "iat": now, "exp": now + LIFETIME,
        });
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(signed.as_bytes()).expect("the key signs");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(fixed(&signature)))
    }
}

/// The two numbers of a DER ECDSA signature at their fixed 32 bytes each, as JWTs have them (RFC 7518,
/// section 3.4).
fn fixed(der: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    // SEQUENCE and its length, then twice INTEGER, length, bytes; all lengths are below 128.
    let mut rest = der.get(2..).unwrap_or_default();
    for half in out.chunks_mut(32) {
        let [_, length, number @ ..] = rest else { break };
        let (number, after) = number.split_at_checked(usize::from(*length)).unwrap_or_default();
        for (to, byte) in half.iter_mut().rev().zip(number.iter().rev()) {
            *to = *byte;
        }
        rest = after;
    }
    out
}
