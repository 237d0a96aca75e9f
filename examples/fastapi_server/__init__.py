"""A chat server: a multimodal model under guard behind HTTP, with answers as JSON or as server-sent events.

It starts without a key, with a model that is scripted, until you name your own. From the folder ``examples``:

    pip install fastapi uvicorn
    python -m fastapi_server --port 8000
    CHAT_MODEL=my_package.models:vision CHAT_AUDIT_LOG=audit.jsonl python -m fastapi_server --workers 2

    curl -N http://127.0.0.1:8000/chat -H 'Content-Type: application/json' \
        -d '{"stream": true, "messages": [{"role": "user", "content": "When does the museum open?"}]}'

``app.py`` is where the guard is; docs/deployment.md tells what the settings are good for.
"""
