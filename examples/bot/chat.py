"""The commands. Each returns its answer, which aiogram sends after the commit."""

from __future__ import annotations

from aiogram import F, Router, flags
from aiogram.filters import Command, CommandObject, ExceptionTypeFilter
from aiogram.fsm.context import FSMContext
from aiogram.fsm.state import State, StatesGroup
from aiogram.methods import SendMessage
from aiogram.types import ErrorEvent, ForceReply, Message, User
from sqlalchemy import select

from examples.bot.models import Entry, Expense, Member
from examples.bot.splitting import money, read, settlement, shares
from qsession import QSession, QueueFull, QueueTimeout

router = Router()
HELP = "/join - share the expenses\n/paid 12.50 pizza - I paid for all\n/balance\n/settle"


class Asked(StatesGroup):
    """What the bot waits for."""

    expense = State()


async def members_of(session: QSession, message: Message) -> list[Member]:
    """The members of the chat."""
    found = select(Member).where(Member.chat == message.chat.id).order_by(Member.user)
    return list(await session.scalars(found))


async def joined(session: QSession, message: Message, user: User) -> Member:
    """The member that the sender is, or becomes."""
    member = await session.get(Member, (message.chat.id, user.id))
    if member is None:
        member = Member(chat=message.chat.id, user=user.id, name=user.full_name[:200], balance=0)
        session.add(member)
    return member


async def noted(session: QSession, message: Message, user: User, text: str) -> SendMessage:
    """Note an expense of `user`, unless the same message was noted before."""
    amount = read(text)
    if amount is None:
        return message.reply("Write an amount and what it was for: 12.50 pizza")
    cents, what = amount
    key = (message.chat.id, message.message_id)
    if await session.get(Expense, key) is None:
        await joined(session, message, user)
        expense = Expense(chat=key[0], message=key[1], payer=user.id, cents=cents, what=what)
        session.add(expense)
        await session.flush()
        members = {member.user: member for member in await members_of(session, message)}
        for number, change in shares(cents, list(members), user.id).items():
            members[number].balance += change
            session.add(Entry(chat=key[0], message=key[1], user=number, cents=change))
    return message.reply(f"Noted: {money(cents)} for {what}")


@router.message(Command("start", "help"))
async def show_help(message: Message) -> SendMessage:
    return message.answer(HELP)


@router.message(Command("join"), F.from_user.as_("user"))
async def join(message: Message, session: QSession, user: User) -> SendMessage:
    member = await joined(session, message, user)
    return message.answer(f"{member.name} shares the expenses from now on.")


@router.message(Command("paid"), F.from_user.as_("user"))
async def paid(
    message: Message, command: CommandObject, session: QSession, state: FSMContext, user: User
) -> SendMessage:
    if command.args:
        return await noted(session, message, user, command.args)
    await state.set_state(Asked.expense)
    return message.reply("How much, and for what?", reply_markup=ForceReply(selective=True))


@router.message(Command("balance"))
@flags.session(access="read")
async def balance(message: Message, session: QSession) -> SendMessage:
    members = await members_of(session, message)
    lines = [f"{each.name}: {money(each.balance)}" for each in members]
    return message.answer("\n".join(lines) or "Nobody has joined yet: /join")


@router.message(Command("settle"))
@flags.session(access="read")
async def settle(message: Message, session: QSession) -> SendMessage:
    members = {each.user: each for each in await members_of(session, message)}
    payments = settlement({number: each.balance for number, each in members.items()})
    lines = [f"{members[a].name} pays {members[b].name} {money(cents)}" for a, b, cents in payments]
    return message.answer("\n".join(lines) or "Nobody owes anything.")


@router.message(Asked.expense, F.text.as_("text"), F.from_user.as_("user"))
async def answered(
    message: Message, session: QSession, state: FSMContext, text: str, user: User
) -> SendMessage:
    if read(text) is not None:
        await state.clear()
    return await noted(session, message, user, text)


@router.errors(ExceptionTypeFilter(QueueTimeout, QueueFull), F.update.message.as_("message"))
async def too_busy(event: ErrorEvent, message: Message) -> SendMessage:
    return message.reply("Too busy. Nothing was noted; try again in a minute.")
