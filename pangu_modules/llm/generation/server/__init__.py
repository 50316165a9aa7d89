"""Asking a server in the OpenAI protocol, and starting one."""
