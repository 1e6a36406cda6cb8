"""A mail server for tests: takes what it is sent and keeps it."""

import asyncio
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import default


@dataclass
class Mail:
    sender: str = ""
    recipients: list[str] = field(default_factory=list)
    text: str = ""


class MailServer:
    """Speaks as much SMTP as smtplib needs, on loopback."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []

    async def __aenter__(self) -> "MailServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mail = Mail()
        writer.write(b"220 test\r\n")
        while line := (await reader.readline()).decode().strip():
            verb = line[:4].upper()
            if verb == "MAIL":
                mail.sender = line.partition("<")[2].partition(">")[0]
            elif verb == "RCPT":
                mail.recipients.append(line.partition("<")[2].partition(">")[0])
            elif verb == "DATA":
                writer.write(b"354 go on\r\n")
                raw = await reader.readuntil(b"\r\n.\r\n")
                mail.text = message_from_bytes(raw, policy=default).get_content()
                self.mails.append(mail)
                mail = Mail()
            elif verb == "QUIT":
                writer.write(b"221 bye\r\n")
                break
            writer.write(b"250 ok\r\n")
            await writer.drain()
        writer.close()
        await writer.wait_closed()
