"""Mail through the SMTP server of `VANILLA_SAAS_SMTP_URL`: links to people who forgot their password."""

import asyncio
import smtplib
import ssl
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from urllib.parse import parse_qs, unquote, urlsplit

TIMEOUT_S = 20.0
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# a slow mail server holds up other mails only
_threads = ThreadPoolExecutor(2, thread_name_prefix="mail")

_LINK_TEXT = """\
Somebody, probably you, asked for a link to set a new password for {address}.

{link}

It works once and for one hour. If you did not ask for it, there is nothing to do: your password stays as it is.
"""


async def send_password_link(smtp_url: str, address: str, link: str) -> None:
    """Sends the link. Raises OSError, of which smtplib's errors are, and ValueError for a malformed URL."""
    message = EmailMessage()
    message["Subject"] = "Set a new password"
    message["To"] = address
    message.set_content(_LINK_TEXT.format(address=address, link=link))
    await asyncio.get_running_loop().run_in_executor(_threads, _send, smtp_url, message, address)


def _send(smtp_url: str, message: EmailMessage, address: str) -> None:
    url = urlsplit(smtp_url)
    host, user = url.hostname or "localhost", unquote(url.username or "")
    if url.scheme not in ("smtp", "smtps"):
        raise ValueError("VANILLA_SAAS_SMTP_URL begins with smtp:// or smtps://")
    sender = parse_qs(url.query).get("from", [user if "@" in user else f"no-reply@{host}"])[0]
    message["From"] = sender
    context = ssl.create_default_context()
    server = (
        smtplib.SMTP_SSL(host, url.port or 465, timeout=TIMEOUT_S, context=context)
        if url.scheme == "smtps"
        else smtplib.SMTP(host, url.port or 587, timeout=TIMEOUT_S)
    )
    with server:
        server.ehlo_or_helo_if_needed()
        if url.scheme == "smtp" and server.has_extn("starttls"):
            server.starttls(context=context)
        elif url.scheme == "smtp" and user and host not in _LOOPBACK:
            raise smtplib.SMTPException("the mail server offers no TLS: the password is not sent in clear")
        if user:
            server.login(user, unquote(url.password or ""))
        # the envelope names one recipient, whatever the header would parse as
        server.send_message(message, from_addr=sender, to_addrs=[address])
