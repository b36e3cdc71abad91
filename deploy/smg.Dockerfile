# SMG with the flags of deploy/smg.flags, which lie at /etc/smg.flags. Arguments of the container are further flags.
FROM python:3.12-slim

RUN pip install --no-cache-dir smg==1.13.0
USER 10002
EXPOSE 39290
ENTRYPOINT ["/bin/sh", "-c", "exec smg launch $(sed 's/#.*//' /etc/smg.flags) \"$@\"", "smg"]
