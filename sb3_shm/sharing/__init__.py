"""Trained models for others: folders, cards, the Hugging Face Hub, a safe format, exports."""
